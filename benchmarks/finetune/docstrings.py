"""The default task: which standard-library module does a docstring belong to?"""

import collections
import pathlib
from collections.abc import Iterator

from .stdlib_sources import Rows, documented, library, order, required, sources

SMALLEST, LARGEST, DEV_SHARE = 60, 120, 0.3


def docstring_task(root: pathlib.Path | None = None) -> tuple[Rows, Rows]:
    """Train and dev rows, with `text` and `label`; the same at every call."""
    train, dev = [], []
    for module, texts in sorted(_texts_by_module(root or library()).items()):
        rows = [{"text": text, "label": module} for text in texts]
        cut = round(len(rows) * DEV_SHARE)
        dev += rows[:cut]
        train += rows[cut:]
    required(train)
    return train, dev


def _texts_by_module(root: pathlib.Path) -> dict[str, list[str]]:
    """Up to LARGEST docstrings of every module with SMALLEST or more."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for module, source in _promising(root):
        found[module].update(text for _, text in documented(source))
    owners = collections.Counter(text for texts in found.values() for text in texts)
    chosen = {}
    for module, texts in found.items():
        # A text that two modules share has no right answer.
        own = sorted((t for t in texts if owners[t] == 1), key=order)
        if len(own) >= SMALLEST:
            chosen[module] = own[:LARGEST]
    return chosen


def _promising(root: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(top-level module, source) of the modules that may have enough docstrings."""
    for module, files in sources(root).items():
        # Parsing takes seconds; two quotes a docstring is a bound that costs none.
        quotes = sum(s.count(b'"""') + s.count(b"'''") for s in files)
        if quotes >= 2 * SMALLEST:
            yield from ((module, source) for source in files)
