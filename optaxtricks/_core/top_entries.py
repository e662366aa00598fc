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
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .pairs import Pair, at_least, carried, equal, halves
from .parts import Plan, inside, position

# Bits of the answer that one pass decides. One reading of the scores serves all
# 2**3 - 1 candidates, and reading is what a pass costs; with a fourth bit the
# comparisons cost more than the passes they save.
_BITS = 3
_STEPS = range(1, 2**_BITS)


@functools.partial(jax.jit, static_argnames=("plan", "exact"))
def largest(
    leaves: Sequence[jax.Array], ranks: Pair, sizes: Pair, *, plan: Plan, exact: bool
) -> tuple[list[jax.Array], jax.Array]:
    """Masks of the `ranks[g]` largest entries of each group `g` of leaves.

    Args:
      leaves: floating-point arrays.
      ranks: how many entries to keep of each group.
      sizes: how many entries each group has.
      plan: from `plan_for`.
      exact: keep exactly that many, the first ones among equals; otherwise also all
        entries equal to the last one kept.

    Returns:
      A bool array for each leaf, and (leaves, 2) counts of NaN and negative entries.
    """
    bad = jnp.stack([_tally([x != x, x < 0], plan) for x in leaves])
    word = np.dtype(np.uint32)
    if any(x.dtype == jnp.float64 for x in leaves):
        word = np.dtype(np.uint64)
    threshold = _find_threshold(leaves, ranks, sizes, plan, word)
    limits = [threshold[group] for group in plan.groups]

    def against(leaves: Sequence[jax.Array]) -> list[tuple[jax.Array, jax.Array]]:
        """Per leaf, which entries are tied with the last one kept, and which exceed."""
        keys = [_ordered_bits(x, word) for x in leaves]
        return [(k == t, k > t) for k, t in zip(keys, limits, strict=True)]

    tests = against(leaves)
    if not exact:
        return [tied | exceeds for tied, exceeds in tests], bad
    masks = [exceeds for _, exceeds in tests]
    cuts = _find_cuts(leaves, against, ranks, plan)
    for part, cut in zip(plan.parts, cuts, strict=True):
        tied, _ = tests[part.leaf]
        first = tied & (position(tied, part) < cut)
        masks[part.leaf] |= inside(first, part, tied)
    return masks, bad


def _find_threshold(
    leaves: Sequence[jax.Array], ranks: Pair, sizes: Pair, plan: Plan, word: np.dtype
) -> jax.Array:
    """Per group, the largest bits that `rank` entries reach.

    Or any that exactly `rank` entries reach: the search stops there.
    """
    steps = np.array(_STEPS, word)
    digits = math.ceil((word.itemsize * 8 - 1) / _BITS)  # the sign bit is clear

    def unsettled(state: Any) -> Any:
        shift, _, reached = state
        return (shift >= 0) & ~jnp.all(equal(reached, ranks))

    def narrow(state: Any) -> Any:
        shift, threshold, reached = state
        # The barrier ties the bits to the loop: outside of it, where XLA would move
        # them, they would take up memory as large as the scores.
        held, shift = jax.lax.optimization_barrier((leaves, shift))
        keys = [_ordered_bits(x, word) for x in held]
        tries = _candidates(threshold, steps, shift)
        counts = [
            _tally([inside(keys[p.leaf] >= t, p, keys[p.leaf]) for t in row], plan)
            for p, row in zip(plan.parts, tries[plan.part_groups], strict=True)
        ]
        totals = _total(jnp.stack(counts), plan)
        taken = jnp.sum(at_least(totals, _column(ranks)), axis=1, dtype=jnp.int32)
        threshold = _pick(_beside(threshold, tries), taken)
        ladder = [_beside(r, t) for r, t in zip(reached, totals, strict=True)]
        reached = _pick(ladder[0], taken), _pick(ladder[1], taken)
        return shift - _BITS, threshold, reached

    start = jnp.zeros(len(ranks[0]), word)
    top = jnp.asarray((digits - 1) * _BITS, jnp.int32)
    everything = (jnp.asarray(sizes[0]), jnp.asarray(sizes[1]))
    return jax.lax.while_loop(unsettled, narrow, (top, start, everything))[1]


def _find_cuts(
    leaves: Sequence[jax.Array],
    against: Callable[[Sequence[jax.Array]], list[tuple[jax.Array, jax.Array]]],
    ranks: Pair,
    plan: Plan,
) -> jax.Array:
    """Per part, the position before which its tied entries are kept."""
    tests = against(leaves)
    counts = jnp.stack(
        [
            _tally([inside(test, part, test) for test in tests[part.leaf]], plan)
            for part in plan.parts
        ]
    )
    high, low = _total(counts[:, 1:], plan)
    shares = _shares(counts[:, 0], ranks, (high[:, 0], low[:, 0]), plan)
    whole = shares == counts[:, 0]
    steps = np.array(_STEPS, np.uint32)
    largest_part = max((p.stop - p.start) * p.row_size for p in plan.parts)

    def unsettled(state: Any) -> Any:
        shift, _, kept = state
        return (shift >= 0) & ~jnp.all(kept == shares)

    def narrow(state: Any) -> Any:
        shift, cuts, kept = state
        zero = jnp.zeros((), jnp.uint32)
        held, shift, zero = jax.lax.optimization_barrier((leaves, shift, zero))
        tests = against(held)
        tries = _candidates(cuts, steps, shift)
        rows = []
        for part, row in zip(plan.parts, tries, strict=True):
            tied, _ = tests[part.leaf]
            ties = inside(tied, part, tied)
            place = position(ties, part, zero)
            rows.append(_tally([ties & (place < t) for t in row], plan))
        counts = _beside(kept, jnp.stack(rows))
        taken = jnp.sum(counts[:, 1:] <= shares[:, None], axis=1, dtype=jnp.int32)
        chosen = _pick(_beside(cuts, tries), taken)
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
    for half in halves(counts):
        running = jnp.cumsum(half, dtype=jnp.uint32) - half
        before.append(running - running[plan.firsts])
    done = carried(
        before[0] + above[0][plan.part_groups], before[1] + above[1][plan.part_groups]
    )
    after = carried(*(x + y for x, y in zip(done, halves(counts), strict=True)))
    wanted = ranks[0][plan.part_groups], ranks[1][plan.part_groups]
    # Wraps around where it is not used: where all or none of the part is kept.
    missing = ((wanted[0] - done[0]) << 16) + (wanted[1] - done[1])
    some = jnp.where(at_least(wanted, after), counts, missing)
    return jnp.where(at_least(done, wanted), np.uint32(0), some)


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
    zeros = [np.uint32(0)] * len(tests)
    ones = [test.astype(jnp.uint32) for test in tests]
    add = lambda x, y: [a + b for a, b in zip(x, y, strict=True)]
    return jnp.stack(jax.lax.reduce(ones, zeros, add, tuple(range(tests[0].ndim))))


def _ordered_bits(x: jax.Array, word: np.dtype) -> jax.Array:
    """Unsigned integers that order as the non-negative floats do."""
    wide = x.astype(np.float64 if word.itemsize == 8 else np.float32)
    # The magnitude, so that -0.0 counts as 0.0.
    return jax.lax.bitcast_convert_type(jnp.abs(wide), word)


def _total(counts: jax.Array, plan: Plan) -> Pair:
    """Sums over the parts of each group; below 2**16 parts no half overflows."""
    add = lambda half: jax.ops.segment_sum(
        half, plan.part_groups, plan.groups[-1] + 1, indices_are_sorted=True
    )
    high, low = halves(counts)
    return carried(add(high), add(low))


def _column(x: Pair) -> Pair:
    return x[0][:, None], x[1][:, None]


def _beside(first: jax.Array, rest: jax.Array) -> jax.Array:
    return jnp.concatenate([first[:, None], rest], axis=1)


def _pick(table: jax.Array, column: jax.Array) -> jax.Array:
    return jnp.take_along_axis(table, column[:, None], axis=1)[:, 0]
