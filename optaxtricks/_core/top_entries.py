"""The k largest entries of a list of arrays, without sorting or gathering them.

Non-negative floats order as their bits do, so the k-th largest is found by bisection
on its bits: each pass counts the entries that reach a few candidate thresholds, and
only those counts cross devices. Ties are settled by a second bisection, on position.

Counts are integers throughout, and exact for any size: a leaf of more than 2**31
entries is counted in parts, each of which fits a uint32, and the counts of a group
of leaves are added up in two words of base 2**16.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .counter_hash import _count as index_along

# Bits of the answer that one pass decides. One reading of the scores serves all
# 2**3 - 1 candidates, and reading is what a pass costs; with a fourth bit the
# comparisons cost more than the passes they save.
_BITS = 3
_STEPS = range(1, 2**_BITS)

Pair = tuple[Any, Any]
"""Integers below 2**48 as two uint32 arrays: value = 2**16 * high + low."""


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


def as_pair(values: Sequence[int]) -> Pair:
    """Python integers as a pair of uint32 vectors."""
    words = np.array([divmod(value, 2**16) for value in values], np.uint32)
    return words[:, 0], words[:, 1]


@functools.partial(jax.jit, static_argnames=("plan", "exact"))
def largest(
    leaves: Sequence[jax.Array], ranks: Pair, sizes: Pair, *, plan: Plan, exact: bool
) -> tuple[list[jax.Array], jax.Array]:
    """Masks of the `ranks[g]` largest entries of each group `g` of leaves.

    Args:
      leaves: floating-point arrays of one dtype, at least float32.
      ranks: how many entries to keep of each group.
      sizes: how many entries each group has.
      plan: from `plan_for`.
      exact: keep exactly that many, the first ones among equals; otherwise also all
        entries equal to the last one kept.

    Returns:
      A bool array for each leaf, and (leaves, 2) counts of NaN and negative entries.
    """
    bad = jnp.stack([_tally([x != x, x < 0], plan) for x in leaves])
    keys = [_ordered_bits(x) for x in leaves]
    threshold, reached, above = _find_threshold(keys, ranks, sizes, plan)
    limits = [threshold[group] for group in plan.groups]
    if not exact:
        return [k >= t for k, t in zip(keys, limits, strict=True)], bad
    tied = [k == t for k, t in zip(keys, limits, strict=True)]
    cuts = _find_cuts(tied, _equal(reached, ranks), ranks, above, plan)
    masks = [k > t for k, t in zip(keys, limits, strict=True)]
    for i, part in enumerate(plan.parts):
        first = tied[part.leaf] & (_position(keys[part.leaf], part) < cuts[i])
        masks[part.leaf] |= _inside(first, part, keys[part.leaf])
    return masks, bad


def _find_threshold(
    keys: Sequence[jax.Array], ranks: Pair, sizes: Pair, plan: Plan
) -> tuple[jax.Array, Pair, Pair]:
    """Per group the threshold, how many entries reach it and how many exceed it.

    It is the largest that `rank` entries reach, or any that exactly `rank` entries
    reach; the number that exceed it is right in the first case only.
    """
    word = keys[0].dtype
    steps = np.array(_STEPS, word)
    digits = math.ceil((word.itemsize * 8 - 1) / _BITS)  # the sign bit is clear

    def unsettled(state: Any) -> Any:
        shift, _, reached, _ = state
        return (shift >= 0) & ~jnp.all(_equal(reached, ranks))

    def narrow(state: Any) -> Any:
        shift, threshold, reached, above = state
        tries = _candidates(threshold, steps, shift)
        counts = [
            _tally([_inside(keys[p.leaf] >= t, p, keys[p.leaf]) for t in row], plan)
            for p, row in zip(plan.parts, tries[plan.part_groups], strict=True)
        ]
        totals = _total(jnp.stack(counts), plan)
        taken = jnp.sum(_at_least(totals, _column(ranks)), axis=1, dtype=jnp.int32)
        threshold = _pick(jnp.concatenate([threshold[:, None], tries], 1), taken)
        ladder = _ladder(reached, totals, above)
        reached = _pick(ladder[0], taken), _pick(ladder[1], taken)
        above = _pick(ladder[0], taken + 1), _pick(ladder[1], taken + 1)
        return shift - _BITS, threshold, reached, above

    start = jnp.zeros(len(ranks[0]), word)
    none = jnp.zeros(len(ranks[0]), jnp.uint32)
    top = jnp.asarray((digits - 1) * _BITS, jnp.int32)
    everything = (jnp.asarray(sizes[0]), jnp.asarray(sizes[1]))
    state = (top, start, everything, (none, none))
    return jax.lax.while_loop(unsettled, narrow, state)[1:]


def _find_cuts(
    tied: Sequence[jax.Array], settled: jax.Array, ranks: Pair, above: Pair, plan: Plan
) -> jax.Array:
    """Per part, the position before which its tied entries are kept."""
    counts = jnp.stack(
        [_tally([_inside(tied[p.leaf], p, tied[p.leaf])], plan)[0] for p in plan.parts]
    )
    shares = _shares(counts, ranks, above, plan)
    whole = settled[plan.part_groups] | (shares == counts)
    steps = np.array(_STEPS, np.uint32)
    largest_part = max((p.stop - p.start) * p.row_size for p in plan.parts)

    def unsettled(state: Any) -> Any:
        shift, _, kept = state
        return (shift >= 0) & ~jnp.all(kept == shares)

    def narrow(state: Any) -> Any:
        shift, cuts, kept = state
        tries = _candidates(cuts, steps, shift)
        rows = []
        for part, row in zip(plan.parts, tries, strict=True):
            ties = _inside(tied[part.leaf], part, tied[part.leaf])
            position = _position(ties, part)
            rows.append(_tally([ties & (position < t) for t in row], plan))
        counts = jnp.concatenate([kept[:, None], jnp.stack(rows)], 1)
        taken = jnp.sum(counts[:, 1:] <= shares[:, None], axis=1, dtype=jnp.int32)
        chosen = _pick(jnp.concatenate([cuts[:, None], tries], 1), taken)
        done = kept == shares
        return (
            shift - _BITS,
            jnp.where(done, cuts, chosen),
            jnp.where(done, kept, _pick(counts, taken)),
        )

    top = jnp.asarray(largest_part.bit_length() // _BITS * _BITS, jnp.int32)
    cuts = jnp.where(whole, np.uint32(2**32 - 1), np.uint32(0))
    kept = jnp.where(whole, shares, np.uint32(0))
    return jax.lax.while_loop(unsettled, narrow, (top, cuts, kept))[1]


def _shares(counts: jax.Array, ranks: Pair, above: Pair, plan: Plan) -> jax.Array:
    """How many tied entries of each part are kept, earlier parts first."""
    before = []
    for half in _halves(counts):
        running = jnp.cumsum(half, dtype=jnp.uint32) - half
        before.append(running - running[plan.firsts])
    done = _carried(
        before[0] + above[0][plan.part_groups], before[1] + above[1][plan.part_groups]
    )
    after = _carried(*(x + y for x, y in zip(done, _halves(counts), strict=True)))
    wanted = ranks[0][plan.part_groups], ranks[1][plan.part_groups]
    # Wraps around where it is not used: where all or none of the part is kept.
    missing = ((wanted[0] - done[0]) << 16) + (wanted[1] - done[1])
    some = jnp.where(_at_least(wanted, after), counts, missing)
    return jnp.where(_at_least(done, wanted), np.uint32(0), some)


def _candidates(base: jax.Array, steps: np.ndarray, shift: jax.Array) -> jax.Array:
    """`base` plus each multiple of 2**shift; the largest word where that overflows."""
    by = shift.astype(steps.dtype)
    offsets = jnp.asarray(steps) << by
    tries = base[:, None] + offsets[None, :]
    fits = (offsets >> by == steps)[None, :] & (tries >= base[:, None])
    return jnp.where(fits, tries, jnp.asarray(np.iinfo(steps.dtype).max, steps.dtype))


def _tally(tests: Sequence[jax.Array], plan: Plan) -> jax.Array:
    """How many entries pass each test, as a uint32 vector."""
    if plan.spread:
        # Plain sums: the SPMD partitioner makes each a scalar all-reduce.
        return jnp.stack([jnp.sum(test, dtype=jnp.uint32) for test in tests])
    # One reduction with many results: XLA reads the leaf once, and on a CPU it
    # rewrites plain sums in a way that writes every test out to memory first.
    tests = [*tests, *tests] if len(tests) == 1 else tests
    zeros = [np.uint32(0)] * len(tests)
    ones = [test.astype(jnp.uint32) for test in tests]
    add = lambda x, y: [a + b for a, b in zip(x, y, strict=True)]
    return jnp.stack(jax.lax.reduce(ones, zeros, add, tuple(range(tests[0].ndim))))


def _inside(test: jax.Array, part: Part, like: jax.Array) -> jax.Array:
    """`test` within the part, false outside."""
    if part.start == 0 and part.stop == math.prod(like.shape[: part.row_axes]):
        return test
    row = index_along(like, range(part.row_axes))
    return test & (row >= np.uint32(part.start)) & (row < np.uint32(part.stop))


def _position(like: jax.Array, part: Part) -> jax.Array:
    """Row-major position in the part; meaningless outside of it."""
    column = index_along(like, range(part.row_axes, like.ndim))
    if part.row_axes == 0:
        return column
    row = index_along(like, range(part.row_axes)) - np.uint32(part.start)
    return row * np.uint32(part.row_size) + column


def _ordered_bits(x: jax.Array) -> jax.Array:
    """Unsigned integers that order as the non-negative floats do."""
    word = jnp.uint64 if x.dtype == jnp.float64 else jnp.uint32
    return jax.lax.bitcast_convert_type(jnp.abs(x), word)  # abs: -0.0 counts as 0.0


def _total(counts: jax.Array, plan: Plan) -> Pair:
    """Sums over the parts of each group; below 2**16 parts no half overflows."""
    add = lambda half: jax.ops.segment_sum(
        half, plan.part_groups, plan.groups[-1] + 1, indices_are_sorted=True
    )
    high, low = _halves(counts)
    return _carried(add(high), add(low))


def _halves(counts: Any) -> Pair:
    return counts >> 16, counts & np.uint32(2**16 - 1)


def _carried(high: Any, low: Any) -> Pair:
    return high + (low >> 16), low & np.uint32(2**16 - 1)


def _at_least(x: Pair, y: Pair) -> Any:
    return (x[0] > y[0]) | ((x[0] == y[0]) & (x[1] >= y[1]))


def _equal(x: Pair, y: Pair) -> Any:
    return (x[0] == y[0]) & (x[1] == y[1])


def _column(x: Pair) -> Pair:
    return x[0][:, None], x[1][:, None]


def _ladder(first: Pair, middle: Pair, last: Pair) -> Pair:
    joined = [
        jnp.concatenate([f[:, None], m, z[:, None]], 1)
        for f, m, z in zip(first, middle, last, strict=True)
    ]
    return joined[0], joined[1]


def _pick(table: jax.Array, column: jax.Array) -> jax.Array:
    return jnp.take_along_axis(table, column[:, None], axis=1)[:, 0]
