"""Integers beyond 32 bits without x64: two uint32 words in base 2**16."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Pair = tuple[Any, Any]
"""Integers below 2**48 as two uint32 arrays, high and low: 2**16 * high + low."""


def as_pair(values: Sequence[int]) -> Pair:
    """Python integers as a pair of uint32 vectors."""
    words = np.array([divmod(value, 2**16) for value in values], np.uint32)
    return words[:, 0], words[:, 1]


def halves(counts: Any) -> Pair:
    """A uint32 as a pair."""
    return counts >> 16, counts & np.uint32(2**16 - 1)


def carried(high: Any, low: Any) -> Pair:
    """The pair of words that may hold more than 16 bits."""
    return high + (low >> 16), low & np.uint32(2**16 - 1)


def at_least(x: Pair, y: Pair) -> Any:
    """Whether x >= y."""
    return (x[0] > y[0]) | ((x[0] == y[0]) & (x[1] >= y[1]))


def equal(x: Pair, y: Pair) -> Any:
    """Whether x == y."""
    return (x[0] == y[0]) & (x[1] == y[1])
