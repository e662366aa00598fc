"""Leaves cut into parts whose entries a 32-bit word can count and number."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .positions import index_along


class Part(NamedTuple):
    """Rows `start` to `stop` of a leaf seen as a matrix of so many entries a row."""

    leaf: int
    start: int
    stop: int
    row_size: int
    row_axes: int


class Plan(NamedTuple):
    """How the leaves are counted; static, hence hashable.

    Attributes:
      parts: of all leaves, in leaf order.
      groups: the group of each leaf, ascending from 0.
      spread: whether the leaves may lie on several devices.
    """

    parts: tuple[Part, ...]
    groups: tuple[int, ...]
    spread: bool

    @property
    def part_groups(self) -> np.ndarray:
        """The group of each part."""
        return np.array([self.groups[part.leaf] for part in self.parts], np.int32)

    @property
    def firsts(self) -> np.ndarray:
        """For each part, the first part of its group."""
        return np.searchsorted(self.part_groups, self.part_groups)


def plan_for(
    shapes: Sequence[tuple[int, ...]],
    groups: Sequence[int],
    *,
    spread: bool,
    limit: int = 2**31,
) -> Plan:
    """Cuts leaves into parts of at most `limit` entries, along their leading axes."""
    parts = []
    for leaf, shape in enumerate(shapes):
        axes = 0
        while math.prod(shape[axes:]) > limit:
            axes += 1
        rows, row_size = math.prod(shape[:axes]), math.prod(shape[axes:])
        if rows >= 2**32:
            raise ValueError(f"a leaf of shape {shape} is too large; reshape it.")
        step = limit // max(1, row_size)
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            parts.append(Part(leaf, start, stop, row_size, axes))
    return Plan(tuple(parts), tuple(groups), spread)


def inside(test: jax.Array, part: Part, like: jax.Array) -> jax.Array:
    """`test` within the part, false outside."""
    if part.start == 0 and part.stop == math.prod(like.shape[: part.row_axes]):
        return test
    row = index_along(like, range(part.row_axes))
    return test & (row >= np.uint32(part.start)) & (row < np.uint32(part.stop))


def position(like: jax.Array, part: Part, zero: Any = None) -> jax.Array:
    """Row-major position in the part; meaningless outside of it."""
    column = index_along(like, range(part.row_axes, like.ndim), zero)
    if part.row_axes == 0:
        return column
    row = index_along(like, range(part.row_axes), zero) - np.uint32(part.start)
    return row * np.uint32(part.row_size) + column
