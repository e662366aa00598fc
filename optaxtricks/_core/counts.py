"""Counts that neither overflow nor round, in two uint32 words each."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LOW = np.uint32(255)


def total_count(counts: jax.Array, at_most: int) -> Any:
    """The sum of uint32 counts, none of which is above 2**32 along axis 0."""
    if at_most < 2**32:
        return split_count(counts.sum(dtype=jnp.uint32))
    rows = counts.sum(axis=tuple(range(1, counts.ndim)), dtype=jnp.uint32)
    return exact_sum(rows, low_bits=8)


def exact_sum(counts: jax.Array, *, low_bits: int) -> tuple[jax.Array, jax.Array]:
    """The sum of fewer than 2**32 uint32 counts, as its upper and its lowest bits."""
    # Of groups of so few bits that their sums do not overflow: the more counts, the
    # fewer bits.
    width = next((w for w in (16, 8, 4, 2) if counts.size << w <= 2**32), 1)
    group, lowest = np.uint32(2**width - 1), np.uint32(2**low_bits - 1)
    high = low = jnp.zeros((), jnp.uint32)
    for shift in range(0, 32, width):
        one = ((counts >> np.uint32(shift)) & group).sum(dtype=jnp.uint32)
        above = low_bits - shift
        if above > 0:
            low = low + ((one << np.uint32(shift)) & lowest)
            high = high + (one >> np.uint32(above))
        else:
            high = high + (one << np.uint32(-above))
    return high + (low >> np.uint32(low_bits)), low & lowest


def split_count(count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A uint32 count as upper and lower bits: all of it in the lower ones for now."""
    return jnp.zeros_like(count), count


def added(counts: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
    """The sum of split counts."""
    zero = jnp.zeros((), jnp.uint32)
    high = sum((high + (low >> 8) for high, low in counts), zero)
    return _carried(high, sum((low & _LOW for _, low in counts), zero))


def with_known(count: Any, number: int) -> tuple[jax.Array, jax.Array]:
    """A split count and a known number, which may be negative, together."""
    # Unsigned arithmetic wraps around, and the sum is no negative number.
    high, low = np.uint32((number >> 8) % 2**32), np.uint32(number & 255)
    return _carried(count[0] + high, count[1] + low)


def fraction(count: Any, of: int) -> jax.Array:
    """A split count over a known number: 1 if they are equal, and only then."""
    high, low = _carried(*count)
    number = high.astype(jnp.float32) * np.float32(256) + low.astype(jnp.float32)
    whole = np.float32(of >> 8) * np.float32(256) + np.float32(of & 255)
    share = number / np.maximum(whole, np.float32(1))  # of nothing, 0
    every = (high == np.uint32(of >> 8)) & (low == np.uint32(of & 255))
    return jnp.where(every, share, jnp.minimum(share, np.float32(1 - 2**-24)))


def _carried(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    return high + (low >> 8), low & _LOW
