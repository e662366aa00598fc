"""Totals of leaves in one pass over each: which pass, the platform decides.

Which reductions XLA computes in one pass, with each other and with the optimizer that
reads the leaves next, differs:

- For a TPU it merges float32 reductions of any result shape, but neither integer ones
  nor one of several arrays at once.
- For a GPU it merges those that have one result shape, here one number a row. What is
  then left to add up are small arrays, many of them in one kernel.
- For a CPU it runs a reduction of a whole array one entry after the other, or, where
  several read one array, writes temporary arrays of its size. Sums of 16 neighbours are
  the exception: that loop it unrolls, and vectorises over the sums.

What is added up over devices is a scalar, or a number a row whose entries they share.
"""

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .counts import added, split_count, total_count
from .shardings import has_explicit_mesh, typed_sharding
from .totals import SCALES, Totals, is_large, is_small, merged

# The length of a run that XLA unrolls with all its sums, and the runs a row must have:
# below that, a mesh may divide a row into parts shorter than a run.
_RUN = 16
_RUNS_A_ROW = 8


class Leaves(NamedTuple):
    """Leaves, and of each the axis that counts its layers; None if it is no stack."""

    arrays: Sequence[Any]
    axes: Sequence[int | None]

    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each, or of its layers."""
        return [
            tuple(n for i, n in enumerate(x.shape) if axis not in (i, i - len(x.shape)))
            for x, axis in zip(self.arrays, self.axes, strict=True)
        ]

    def each(self, read: Any, *more: Any) -> list[Any]:
        """What `read` says of each, or of its layers, each with its own of `more`."""
        return [
            read(x, *more)
            if axis is None
            else jax.vmap(read, in_axes=(axis, *[0] * len(more)))(x, *more)
            for x, axis in zip(self.arrays, self.axes, strict=True)
        ]


def totals_of(leaves: Leaves) -> Totals:
    """The totals of leaves of at least one entry each, in float32 or wider.

    Of stacks of one number of layers they are one for each layer. A row is an index of
    axis 0. Leaves of rank 0 and 1 have no rows.
    """
    # A reduction of several arrays at once has no derivative, and needs none here.
    arrays = jax.lax.stop_gradient(leaves.arrays)
    on = lambda read: lambda arrays: read(leaves._replace(arrays=arrays))
    rows = on(by_rows)
    return jax.lax.platform_dependent(
        arrays, cpu=on(by_runs), cuda=rows, rocm=rows, default=on(at_once)
    )


def at_once(leaves: Leaves) -> Totals:
    """The totals by reductions of whole leaves, of one array each."""
    return merged(leaves.each(_at_once))


# Jitted, here and below, so that leaves of one shape share one trace.
@jax.jit
def _at_once(leaf: jax.Array) -> Totals:
    size = _size(leaf)
    scaled = _scaled(size)
    zeros = _zeros_by_row(size)
    row = math.prod(leaf.shape[1:])
    active = zeros < np.uint32(row) if leaf.ndim > 1 else jnp.zeros((), bool)
    return Totals(
        squares=tuple(_float32(jnp.square(x).sum()) for x in scaled),
        largest=_float32(scaled[1].max()),
        zeros=total_count(zeros, leaf.size),
        active=split_count(active.sum(dtype=jnp.uint32)),
    )


def by_rows(leaves: Leaves) -> Totals:
    """The totals by reductions of rows first, then of all that they gave at once."""
    # Reductions that share an operand become one kernel: these zeros.
    rows = collections.Counter(shape[:1] for shape in leaves.shapes())
    shapes = [shape for shape, number in rows.items() if number > 1]
    zeros = jax.lax.optimization_barrier([jnp.zeros(s, jnp.float32) for s in shapes])
    shared = dict(zip(shapes, zeros, strict=True))

    def read(leaf: jax.Array) -> Totals:
        if leaf.size >= 2**32:  # one word does not hold the number of zeros
            return _at_once(leaf)
        zero = shared.get(leaf.shape[:1])
        return _by_rows(leaf, jnp.zeros((), jnp.float32) if zero is None else zero)

    return merged(leaves.each(read))


@jax.jit
def _by_rows(leaf: jax.Array, zero: jax.Array) -> Totals:
    size = _size(leaf[None] if leaf.ndim == 0 else leaf)
    scaled = _scaled(size)
    others = tuple(range(1, size.ndim))
    largest = jnp.maximum(scaled[1].max(axis=others), zero.astype(size.dtype))
    sums = [jnp.square(x).sum(axis=others) for x in scaled]
    zeros = _zeros_by_row(size) if others else (size == 0).astype(jnp.uint32)
    # NaN is no zero: a row of NaN is active.
    active = (largest != 0).astype(jnp.uint32) * np.uint32(leaf.ndim > 1)
    (*squares, zeros, active), largest = _reduced(
        [*sums, zeros, active], largest, axis=0
    )
    return Totals(
        tuple(map(_float32, squares)),
        _float32(largest),
        split_count(zeros),
        split_count(active),
    )


def by_runs(leaves: Leaves) -> Totals:
    """The totals by reductions of runs first.

    At the middle scale alone. Where that was not the good one, which is rare, a second
    pass takes the squares at the one that is.
    """
    total = merged(leaves.each(_by_runs))
    middle = total.squares[1]
    small = is_small(middle)
    scale = jnp.where(small, SCALES[2], SCALES[0])
    again = (small & (total.largest > 0)) | is_large(middle)
    read = lambda: functools.reduce(jnp.add, leaves.each(_squares_by_runs, scale))
    if any(map(has_explicit_mesh, leaves.arrays)):
        # `vmap` over an axis of such a mesh fails on a branch inside of a branch.
        other = read()
    else:
        other = jax.lax.cond(again.any(), read, lambda: middle)
    return total._replace(squares=(other, middle, other))


@jax.jit
def _by_runs(leaf: jax.Array) -> Totals:
    parts = [_reduced_runs(run) for run in neighbours(_size(leaf))]
    squares, maxima, zeros = zip(*parts, strict=True)
    middle = _float32(_total(squares))
    active = jnp.zeros((), bool)
    if leaf.ndim > 1:
        # NaN is no zero: a row of NaN is active.
        for part in maxima:
            active |= (part != 0).any(axis=tuple(range(1, part.ndim)))
    return Totals(
        squares=(middle,) * len(SCALES),
        largest=_float32(functools.reduce(jnp.maximum, [m.max() for m in maxima])),
        zeros=added([total_count(count, leaf.size) for count in zeros]),
        active=split_count(active.sum(dtype=jnp.uint32)),
    )


@jax.jit
def _squares_by_runs(leaf: jax.Array, scale: jax.Array) -> jax.Array:
    size = _size(leaf)
    parts = [_reduced_runs(run) for run in neighbours(size * scale.astype(size.dtype))]
    # Nothing else of them is read; XLA would leave it out, and add all up in one row.
    parts = jax.lax.optimization_barrier(parts)
    return _float32(_total([squares for squares, _, _ in parts]))


def _total(parts: Sequence[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, [part.sum() for part in parts])


def neighbours(size: jax.Array) -> list[jax.Array]:
    """The entries in runs, along the last axis; in runs of one where rows are short."""
    columns = size.shape[-1] if size.ndim else 0
    if columns < _RUN * _RUNS_A_ROW or typed_sharding(size) is not None:
        return [size[..., None]]
    whole = columns // _RUN * _RUN
    runs = size[..., :whole].reshape(*size.shape[:-1], whole // _RUN, _RUN)
    return [runs] if whole == columns else [runs, size[..., None, whole:]]


def _reduced_runs(runs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each run the sum of squares, the largest entry and the number of zeros."""
    sums = jnp.square(runs), (runs == 0).astype(jnp.uint8)
    (squares, zeros), largest = _reduced(sums, runs, axis=runs.ndim - 1)
    return squares, largest, zeros


def _size(leaf: jax.Array) -> jax.Array:
    size = jnp.abs(leaf)
    return size.astype(np.promote_types(size.dtype, np.float32))


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


def _scaled(size: jax.Array) -> list[jax.Array]:
    """The absolute values at each scale."""
    # XLA would square a constant by itself, and that is no float32 number; and the
    # maximum of what was bfloat16 it would take in bfloat16, in a pass of its own.
    hidden = jax.lax.optimization_barrier([jnp.asarray(k, size.dtype) for k in SCALES])
    return [size * k for k in hidden]


def _zeros_by_row(size: jax.Array) -> jax.Array:
    """How many entries of each row are zero; of a leaf without rows, of all."""
    row = size.shape[size.ndim > 1 :]
    # As far as float32 counts, see above.
    kind = jnp.float32 if math.prod(row) <= 2**24 else jnp.uint32
    axis = tuple(range(size.ndim - len(row), size.ndim))
    return (size == 0).astype(kind).sum(axis=axis, dtype=kind).astype(jnp.uint32)


def _reduced(
    sums: Sequence[jax.Array], largest: jax.Array, *, axis: int
) -> tuple[list[jax.Array], jax.Array]:
    """Sums and maxima along an axis, by one reduction of several arrays."""

    def merge(x: Any, y: Any) -> Any:
        return [a + b for a, b in zip(x[0], y[0], strict=True)], jnp.maximum(x[1], y[1])

    operands = list(sums), largest
    starts = jax.tree.map(lambda x: np.zeros((), x.dtype), operands)
    return jax.lax.reduce(operands, starts, merge, (axis,))
