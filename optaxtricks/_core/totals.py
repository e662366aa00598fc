"""What one pass over a leaf can say of it: size, largest entry, zeros, active rows.

On a CPU, XLA runs a reduction over a whole array one entry after the other, or, where
several reductions read one array, writes temporary arrays of its size. Sums of 16
neighbours are the exception: that loop it unrolls, and vectorises over the sums. So a
leaf is read once, as rows of short runs, and the sums of the runs are added up then.
A run never spans what a mesh axis divides, and what is added up over devices is a
scalar.

Squares of float32 numbers have twice the exponents that float32 has. They are summed up
at three scales at once, powers of two apart, and the sum at the middle one, known at
the end, says which of them is the good one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .shardings import typed_sharding

# The length of a run that XLA unrolls with all its sums, and the runs a row must have:
# below that, a mesh may divide a row into parts shorter than a run.
_RUN = 16
_RUNS_A_ROW = 8
# What entries are multiplied by ahead of squaring, and from where to where the sum at
# the middle scale is the good one.
_SCALES = tuple(np.float32(2.0**power) for power in (-88, 0, 88))
_LEAST, _MOST = np.float32(2.0**-66), np.float32(2.0**110)
_LOW = np.uint32(255)


class Totals(NamedTuple):
    """Sums over leaves. Counts are split at the eighth bit: exact below 2**40.

    Attributes:
      squares: three float32 scalars, the sums of squared absolute values at each
        scale; the last two stop at a bound, see :func:`root`.
      largest: scalar, the largest absolute value.
      zeros: two uint32 scalars, how many entries are zero.
      active: two uint32 scalars, how many rows are not all zero.
    """

    squares: tuple[jax.Array, ...]
    largest: jax.Array
    zeros: Any
    active: Any


def leaf_totals(leaf: jax.Array) -> Totals:
    """The totals of a leaf of at least one entry, in float32 or wider.

    A row is an index of axis 0. Leaves of rank 0 and 1 have no rows.
    """
    size = jnp.abs(leaf)
    size = size.astype(np.promote_types(size.dtype, np.float32))
    # Squares of all float32 numbers are float64 numbers.
    easy = size.dtype == jnp.float64
    scales = _SCALES[1:2] if easy else _SCALES
    sums = _sums(size[None] if size.ndim == 0 else size, scales)
    zero = jnp.zeros((), size.dtype)
    parts = zip(*[squares for squares, _, _ in sums], strict=True)
    squares = [sum((part.sum() for part in each), zero) for each in parts]
    if easy:
        squares = [squares[0] * scale.astype(zero.dtype) ** 2 for scale in _SCALES]
    # Past the bound they are not read; infinite, they would trip `jax_debug_infs`.
    bounds = np.float32(np.inf), _MOST, _MOST
    squares = tuple(
        jnp.minimum(square, bound.astype(square.dtype)).astype(jnp.float32)
        for square, bound in zip(squares, bounds, strict=True)
    )
    largest = sums[0][1].max()
    for _, part, _ in sums[1:]:
        largest = jnp.maximum(largest, part.max())
    zeros = added([total_count(count, size.size) for _, _, count in sums])
    if leaf.ndim < 2:
        return Totals(squares, largest, zeros, split_count(jnp.zeros((), jnp.uint32)))
    # NaN is no zero: a row of NaN is active.
    moved = [(m != 0).any(axis=tuple(range(1, m.ndim))) for _, m, _ in sums]
    active = moved[0] if len(moved) == 1 else moved[0] | moved[1]
    return Totals(squares, largest, zeros, split_count(active.sum(dtype=jnp.uint32)))


def merged(totals: list[Totals]) -> Totals:
    """The totals of several leaves together, in float32."""
    largest = jnp.zeros((), jnp.float32)
    for one in totals:
        largest = jnp.maximum(largest, one.largest.astype(jnp.float32))
    zero = jnp.zeros((), jnp.float32)
    return Totals(
        squares=tuple(
            sum((one.squares[i] for one in totals), zero) for i in range(len(_SCALES))
        ),
        largest=largest,
        zeros=added([one.zeros for one in totals]),
        active=added([one.active for one in totals]),
    )


def root(total: Totals, *, over: int = 1) -> jax.Array:
    """The root of the sum of squares, divided by a number.

    Squares that the scale makes too small are together less than a fraction of 2**-60
    of the sum for each entry: where the middle sum is below its lower bound, the one
    for small entries is below its upper one.
    """
    middle = total.squares[1]
    roots = [
        jnp.sqrt(square / np.float32(over)) / scale
        for square, scale in zip(total.squares, _SCALES, strict=True)
    ]
    # NaN is neither, and in all sums.
    few = jnp.where(middle < _LEAST, roots[2], roots[1])
    return jnp.where(middle >= _MOST, roots[0], few)


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
    """A uint32 count as its upper 24 and its lower 8 bits."""
    return count >> 8, count & _LOW


def added(counts: list[Any]) -> tuple[jax.Array, jax.Array]:
    """The sum of split counts."""
    zero = jnp.zeros((), jnp.uint32)
    high = sum((high for high, _ in counts), zero)
    return _carried(high, sum((low for _, low in counts), zero))


def with_known(count: Any, number: int) -> tuple[jax.Array, jax.Array]:
    """A split count and a known number, which may be negative, together."""
    # Unsigned arithmetic wraps around, and the sum is no negative number.
    high, low = np.uint32((number >> 8) % 2**32), np.uint32(number & 255)
    return _carried(count[0] + high, count[1] + low)


def fraction(count: Any, of: int) -> jax.Array:
    """A split count over a known number: 1 if they are equal, and only then."""
    high, low = count
    number = high.astype(jnp.float32) * np.float32(256) + low.astype(jnp.float32)
    whole = np.float32(of >> 8) * np.float32(256) + np.float32(of & 255)
    share = number / np.maximum(whole, np.float32(1))  # of nothing, 0
    every = (high == np.uint32(of >> 8)) & (low == np.uint32(of & 255))
    return jnp.where(every, share, jnp.minimum(share, np.float32(1 - 2**-24)))


def _carried(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    return high + (low >> 8), low & _LOW


def _sums(
    size: jax.Array, scales: tuple[np.float32, ...]
) -> list[tuple[tuple[jax.Array, ...], jax.Array, jax.Array]]:
    """Sums of squares, maxima and numbers of zeros, of runs or of single entries."""
    # XLA would square a constant by itself, and that is no float32 number.
    hidden = jax.lax.optimization_barrier([jnp.asarray(k, size.dtype) for k in scales])
    squares = lambda x: tuple(jnp.square(x * k) for k in hidden)
    zeros = lambda x, kind: (x == 0).astype(kind)
    columns = size.shape[-1]
    if columns < _RUN * _RUNS_A_ROW or typed_sharding(size) is not None:
        return [(squares(size), size, zeros(size, jnp.uint32))]
    whole = columns // _RUN * _RUN
    shape = (*size.shape[:-1], whole // _RUN, _RUN)
    over = lambda x: _over_runs(squares(x), x, zeros(x, jnp.uint8))
    if whole == columns:
        return [over(size.reshape(shape))]
    rest = size[..., whole:].reshape(*size.shape[:-1], 1, columns - whole)
    return [over(size[..., :whole].reshape(shape)), over(rest)]


def _over_runs(
    squares: tuple[jax.Array, ...], size: jax.Array, zero: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """The sums over the last axis, in one pass."""

    def merge(x: Any, y: Any) -> Any:
        added = tuple(a + b for a, b in zip(x[0], y[0], strict=True))
        return added, jnp.maximum(x[1], y[1]), x[2] + y[2]

    operands = squares, size, zero
    starts = jax.tree.map(lambda x: np.zeros((), x.dtype), operands)
    return jax.lax.reduce(operands, starts, merge, (size.ndim - 1,))
