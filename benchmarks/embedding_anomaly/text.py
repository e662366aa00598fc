"""The text: the running interpreter's own standard library, word by word.

Nothing is downloaded. Other Python versions have other sources, so figures compare
within one version.
"""

import collections
import dataclasses
import functools
import pathlib
import re
import sysconfig
from collections.abc import Iterator

import numpy as np

from ..finetune.errors import InputError

UNKNOWN = 0
HELD_OUT_EVERY = 20  # files
# Bands of words by how often the training text has them.
RARE_BELOW, FREQUENT_FROM = 10, 100

# Tests, tables of character codes, and packages that newer versions dropped.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_SKIPPED |= {"encodings", "distutils", "lib2to3", "pydoc_data"}
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Text:
    """Word ids of both splits; id 0 is every word outside the vocabulary.

    Attributes:
      train: int32 ids of the training text.
      held_out: int32 ids of every 20th file.
      counts: how often the training text has each id.
    """

    train: np.ndarray
    held_out: np.ndarray
    counts: np.ndarray

    def bands(self) -> dict[str, np.ndarray]:
        """Ids of rare, middling and frequent words."""
        words = np.arange(len(self.counts)) != UNKNOWN
        rare = words & (self.counts < RARE_BELOW)
        frequent = words & (self.counts >= FREQUENT_FROM)
        masks = {"rare": rare, "middle": words & ~rare & ~frequent}
        masks["frequent"] = frequent
        return {name: np.flatnonzero(mask) for name, mask in masks.items()}


@functools.cache
def read_text(vocabulary: int, files: int | None = None) -> Text:
    """The text with its `vocabulary` most frequent ids; the same at every call."""
    documents = list(_documents(files))
    if len(documents) < HELD_OUT_EVERY:
        raise InputError("the standard library's sources are not installed here.")
    held_out = [w for doc in documents[::HELD_OUT_EVERY] for w in doc]
    del documents[::HELD_OUT_EVERY]
    train = [w for doc in documents for w in doc]
    # Of equally frequent words the one that sorts first is kept.
    ranked = sorted(collections.Counter(train).items(), key=lambda x: (-x[1], x[0]))
    if len(ranked) < vocabulary:
        raise InputError(f"the text has {len(ranked)} words, fewer than {vocabulary}.")
    ids = {word: i for i, (word, _) in enumerate(ranked[: vocabulary - 1], start=1)}
    encode = lambda words: np.array([ids.get(w, UNKNOWN) for w in words], np.int32)
    encoded = encode(train)
    counts = np.bincount(encoded, minlength=vocabulary)
    return Text(encoded, encode(held_out), counts)


def _documents(files: int | None) -> Iterator[list[str]]:
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    paths = sorted(p.relative_to(root) for p in root.rglob("*.py"))
    # A name with "-" or "_sysconfigdata" is about this machine.
    kept = [
        p
        for p in paths
        if not _SKIPPED.intersection(p.parts)
        and "-" not in str(p)
        and not p.name.startswith("_sysconfigdata")
    ]
    for path in kept[:files]:
        yield _WORD.findall((root / path).read_text("utf-8", errors="replace"))
