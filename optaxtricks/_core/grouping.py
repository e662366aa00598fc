"""Sums of leaves and what hangs on them, in few GPU kernels and in place.

XLA for GPUs merges loops over leaves of one shape where they read a common array. Where
they do not, it launches one kernel each: for a model of a hundred leaves, most of them
small, hundreds of launches that take longer than the work. A scalar does not count as
common, nor what XLA knows to be constant. So leaves read a vector that is held back
from constant folding. Nothing of one leaf enters another, as `per_layer` demands.
"""

import collections
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LEAVES_A_KERNEL = 4


def common(*numbers: Any, dtype: Any = jnp.float32) -> jax.Array:
    """Numbers that all leaves need, in one vector.

    Two unlike ones are a constant; of equal ones a kernel makes the vector each step.
    """
    vector = jnp.stack([jnp.asarray(x, dtype) for x in numbers])
    return jax.lax.optimization_barrier(vector)


# Jitted, so that leaves of one shape share one trace.
@functools.partial(jax.jit, static_argnames="axes")
def total(x: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """The sum along axes, by default all; on GPUs from a zero that others read too."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    if not axes:  # jax.vmap cannot map over such a reduction
        return x

    def together(x: jax.Array) -> jax.Array:
        zero, _ = common(0, 1, dtype=x.dtype)
        return jax.lax.reduce(x, zero, jax.lax.add, axes)

    apart = lambda x: jnp.sum(x, axis=axes)
    return jax.lax.platform_dependent(x, cuda=together, default=apart)


@jax.jit
def acting(number: jax.Array) -> jax.Array:
    """A number that is to change its leaf: on GPUs times a one that others read too.

    From another vector than above, as XLA would compute sums of some leaves and changes
    of others in one kernel, which is slow at both.
    """
    together = lambda x: x * common(1, 0, 0, dtype=x.dtype)[0]
    return jax.lax.platform_dependent(number, cuda=together, default=lambda x: x)


def totals(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The sum of each of these arrays of one shape, which come from one pass.

    On GPUs in one reduction: XLA lets a kernel that sums and writes write in place only
    if it sums once. On TPUs one by one, as XLA writes and sums in one pass only so.
    """

    def at_once(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
        add = lambda *pair: tuple(x + y for x, y in zip(*pair, strict=True))
        return tuple(jax.lax.reduce(arrays, zeros, add, range(arrays[0].ndim)))

    apart = lambda *arrays: tuple(map(jnp.sum, arrays))
    return jax.lax.platform_dependent(*arrays, cuda=at_once, default=apart)


def read_by_few(words: jax.Array, leaves: Sequence[Any]) -> list[tuple[jax.Array, ...]]:
    """For each leaf the same two words; on GPUs from an array that few leaves read.

    A thread of a merged loop holds what it computes of each leaf: with AdamW before
    `update_dropout` that of four leaves takes 105 registers, of eight 218, and of
    sixteen it spills (`benchmarks.compiled --target h100 --size tree --kernels`).
    """
    seen, read, found = collections.Counter[Any](), {}, []
    for leaf in leaves:
        kind = jnp.shape(leaf), jnp.result_type(leaf)
        group = kind, seen[kind] // _LEAVES_A_KERNEL
        seen[kind] += 1
        if group not in read:
            read[group] = _read(words, np.uint32(len(read) + 1))
        found.append(read[group])
    return found


@jax.jit
def _read(words: jax.Array, group: jax.Array) -> tuple[jax.Array, ...]:
    """Two words; on GPUs with a zero that leaves of other groups do not read."""
    # Not of equal steps, which XLA computes in a kernel instead of keeping them.
    together = lambda *words: tuple(
        word ^ common(0, group, 0, dtype=jnp.uint32)[0] for word in words
    )
    return jax.lax.platform_dependent(
        *words, cuda=together, default=lambda *words: words
    )
