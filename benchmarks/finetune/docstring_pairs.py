"""The harder task: does this docstring belong to this function body?

Every function is shown twice, with its own docstring and with that of another
function of its module, and so is every docstring. Neither side alone says anything
about the label then, and the module's topic does not either.
"""

import ast
import collections
import pathlib
from collections.abc import Iterator

from .stdlib_sources import (
    Function,
    Rows,
    documented,
    library,
    order,
    required,
    sources,
)

LARGEST = 50  # functions of a module
TRAIN, DEV = 1000, 400  # functions at most; each makes two rows
DEV_SHARE = 0.3
# Characters. What is longer would be cut off where a batch has room for it.
SHORTEST_TEXT, SHORTEST_BODY, LONGEST = 30, 60, 300

Pair = tuple[str, str]


def pair_task(root: pathlib.Path | None = None) -> tuple[Rows, Rows]:
    """Train and dev rows: `text` a docstring, `text_b` a body; the same at every call.

    The two come from different modules, so that dev asks for what functions have in
    common and not for what a module's names are.
    """
    modules = _pairs_by_module(root or library())
    room = min(DEV, DEV_SHARE * sum(map(len, modules.values())))
    train, dev = [], []
    for module in sorted(modules, key=order):
        rows = _rows(modules[module])
        fits = len(dev) + len(rows) <= 2 * room
        (dev if fits else train).extend(rows)
    required(train and dev)
    return train[: 2 * TRAIN], dev


def _pairs_by_module(root: pathlib.Path) -> dict[str, list[Pair]]:
    """Up to LARGEST (docstring, body) pairs of every module with at least two."""
    found = {
        module: [pair for source in files for pair in _pairs(source)]
        for module, files in sources(root).items()
    }
    # With a docstring of two bodies, or a body of two docstrings, "other" is wrong.
    owners = collections.Counter(
        part for pairs in found.values() for pair in pairs for part in pair
    )
    chosen = {}
    for module, pairs in found.items():
        own = [p for p in pairs if owners[p[0]] == owners[p[1]] == 1 and _fits(*p)]
        if len(own) >= 2:
            chosen[module] = sorted(own, key=lambda pair: order(pair[1]))[:LARGEST]
    return chosen


def _pairs(source: bytes) -> Iterator[Pair]:
    for node, text in documented(source):
        if isinstance(node, Function):
            body = " ".join(ast.unparse(part) for part in node.body[1:])
            yield text, " ".join(body.split())


def _fits(text: str, body: str) -> bool:
    return (
        SHORTEST_TEXT <= len(text) <= LONGEST
        and SHORTEST_BODY <= len(body) <= LONGEST
        and text not in body
    )


def _rows(pairs: list[Pair]) -> Rows:
    """Each body with its own docstring, and with the next one's."""
    rows = []
    for place, (text, body) in enumerate(pairs):
        other = pairs[(place + 1) % len(pairs)][0]
        rows.append({"text": text, "text_b": body, "label": "own"})
        rows.append({"text": other, "text_b": body, "label": "other"})
    return rows
