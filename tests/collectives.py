"""What a compiled program exchanges between devices, read from its text."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.compiled.hlo import COLLECTIVES

_CALL = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_SHAPE = re.compile(r"\b[a-z]+\d*\[([\d,]*)\]")


class Exchange(NamedTuple):
    """One result of one collective."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many entries every device gets."""
        return math.prod(self.shape)


def exchanges(text: str | None) -> list[Exchange]:
    """Everything that collectives of an HLO module give, in order."""
    found = []
    for results, kind in _CALL.findall(text or ""):
        for sizes in _SHAPE.findall(results):
            shape = tuple(int(size) for size in sizes.split(",") if size)
            found.append(Exchange(kind, shape))
    return found


# For each word of `Case.exchange`: whether an exchange is allowed, given the shape of
# the largest leaf.
ALLOWED: dict[str, Callable[[Exchange, tuple[int, ...]], bool]] = {
    "nothing": lambda found, leaf: False,
    # Finiteness of a leaf, its root mean square, a count.
    "scalars": lambda found, leaf: found.kind == "all-reduce" and not found.shape,
    # A sum or a bit for each row.
    "rows": lambda found, leaf: (
        found.kind == "all-reduce" and len(found.shape) <= 1 and found.size <= max(leaf)
    ),
    # Entries themselves, to and from a leaf that is whole.
    "leaves": lambda found, leaf: (
        found.kind in ("all-reduce", "all-gather") and found.size <= math.prod(leaf)
    ),
}
