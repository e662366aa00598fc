"""Sums over the entries of leaves that neither over- nor underflow.

Squares of float32 numbers have twice the exponents that float32 has. They are summed up
at three scales, powers of two apart, and the sum at the middle one, known at the end,
says which of them is the good one.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .counts import added

SCALES = tuple(np.float32(2.0**power) for power in (-88, 0, 88))
"""What entries are multiplied by ahead of squaring."""
_LEAST, _MOST = np.float32(2.0**-66), np.float32(2.0**110)


class Totals(NamedTuple):
    """Sums over leaves. Counts are split at the eighth bit: exact below 2**40.

    Attributes:
      squares: three float32 scalars, the sums of squared absolute values at each
        scale, of which :func:`root` reads one.
      largest: float32 scalar, the largest absolute value.
      zeros: two uint32 scalars, how many entries are zero.
      active: two uint32 scalars, how many rows are not all zero.
    """

    squares: tuple[jax.Array, ...]
    largest: jax.Array
    zeros: Any
    active: Any


def merged(totals: Sequence[Totals]) -> Totals:
    """The totals of several leaves together."""
    # As vectors: one operation for all leaves, where a chain would be one for each.
    squares = zip(*[one.squares for one in totals], strict=True)
    return Totals(
        squares=tuple(jnp.stack(parts).sum(axis=0) for parts in squares),
        largest=jnp.stack([one.largest for one in totals]).max(axis=0),
        zeros=added([one.zeros for one in totals]),
        active=added([one.active for one in totals]),
    )


def is_small(middle: jax.Array) -> jax.Array:
    """Whether the sum at the middle scale says that the one for small entries is good.

    Squares that the scale makes too small are together less than a fraction of 2**-60
    of the sum for each entry: where the middle sum is below its lower bound, the one
    for small entries is below its upper one.
    """
    return middle < _LEAST


def is_large(middle: jax.Array) -> jax.Array:
    """Whether it says that the one for large entries is; NaN is in all sums."""
    return middle >= _MOST


def root(total: Totals, *, over: int = 1) -> jax.Array:
    """The root of the sum of squares, divided by a number."""
    large, middle, small = [
        jnp.sqrt(square / np.float32(over)) / scale
        for square, scale in zip(total.squares, SCALES, strict=True)
    ]
    good = jnp.where(is_small(total.squares[1]), small, middle)
    return jnp.where(is_large(total.squares[1]), large, good)
