"""The k largest entries of a list of arrays, without sorting or gathering them.

Non-negative floats order as their bits do, so the k-th largest is found by bisection
on its bits: each pass counts, leaf by leaf, the entries that reach a few candidate
thresholds, and only those counts leave a device. Ties are cut by bisection on
position, in the one leaf where the cut falls.

The loop runs in Python, on integers of any size. One compiled count then serves all
leaves of a shape, where a loop inside a program would compile each leaf's own.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .counter_hash import index_axes
from .positions import index_along
from .totals import exact_sum

# Bits of the answer that one pass decides. One reading of the scores serves all
# 2**3 - 1 candidates, and reading is what a pass costs; with a fourth bit the
# comparisons cost more than the passes they save.
_BITS = 3
# Counts below this stay exact in the uint32 of one reduction.
_COUNTABLE = 2**31


def largest(leaves: Sequence[jax.Array], rank: int, *, exact: bool) -> list[jax.Array]:
    """Masks of the `rank` largest entries of non-negative floating-point leaves.

    Args:
      leaves: concrete arrays.
      rank: how many entries to keep, at least one and at most all.
      exact: keep exactly that many, the first ones among equals; otherwise also all
        entries equal to the last one kept.
    """
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    word = np.dtype(np.uint64 if wide else np.uint32)

    def reaching(thresholds: Sequence[int]) -> list[int]:
        words = np.array(thresholds, word)
        found = [_reaching(leaf, words, _is_spread(leaf)) for leaf in leaves]
        return _totals(found)

    threshold, reached = _search(
        reaching, lambda count: count >= rank, goal=rank, stop=2 ** (8 * word.itemsize)
    )
    limit = np.asarray(threshold, word)
    if not exact or reached == rank:
        return [_mask(leaf, limit, _pair(leaf, [leaf.size])) for leaf in leaves]
    tests = [_against(leaf, limit, _is_spread(leaf)) for leaf in leaves]
    missing = rank - _totals(tests)[0]
    masks: list[jax.Array] = []
    for leaf, test in zip(leaves, tests, strict=True):
        ties = _totals([test])[1]
        share = min(missing, ties)
        missing -= share
        masks.append(_mask(leaf, limit, _pair(leaf, [_cut(leaf, limit, share, ties)])))
    return masks


def invalid(leaves: Sequence[jax.Array]) -> list[list[int]]:
    """For each leaf, how many entries are NaN and how many negative."""
    tallies = [_invalid(leaf, _is_spread(leaf)) for leaf in leaves]
    return [_totals([tally]) for tally in tallies]


def _cut(leaf: jax.Array, limit: np.ndarray, share: int, ties: int) -> int:
    """The position before which `share` of the `ties` with the limit stand."""
    if share in (0, ties):
        return leaf.size if share else 0
    before = lambda cuts: _totals(
        [_tied_before(leaf, limit, _pair(leaf, cuts), _is_spread(leaf))]
    )
    return _search(before, lambda n: n <= share, goal=share, stop=leaf.size)[0]


def _search(
    count: Callable[[Sequence[int]], list[int]],
    fits: Callable[[int], bool],
    *,
    goal: int,
    stop: int,
) -> tuple[int, int | None]:
    """The largest number below `stop` whose count fits, or any whose count is `goal`.

    Zero must fit, and a number below one that fits. Returns the number and its count,
    which is unknown for zero.
    """
    best, reached = 0, None
    start = (stop - 1).bit_length() - 1
    for shift in range(start // _BITS * _BITS, -1, -_BITS):
        steps = [best + (i << shift) for i in range(1, 2**_BITS)]
        tries = [min(step, stop - 1) for step in steps]
        counts = count(tries)
        taken = sum(
            fits(found) and step == at
            for found, step, at in zip(counts, steps, tries, strict=True)
        )
        if taken:
            best, reached = tries[taken - 1], counts[taken - 1]
        if reached == goal:
            break
    return best, reached


@functools.partial(jax.jit, static_argnums=2)
def _reaching(leaf: jax.Array, thresholds: jax.Array, spread: bool) -> jax.Array:
    keys = _ordered_bits(leaf, thresholds.dtype)
    return _tally([keys >= threshold for threshold in thresholds], spread)


@functools.partial(jax.jit, static_argnums=2)
def _against(leaf: jax.Array, limit: jax.Array, spread: bool) -> jax.Array:
    """How many entries exceed the limit, and how many equal it."""
    keys = _ordered_bits(leaf, limit.dtype)
    return _tally([keys > limit, keys == limit], spread)


@functools.partial(jax.jit, static_argnums=3)
def _tied_before(
    leaf: jax.Array, limit: jax.Array, cuts: jax.Array, spread: bool
) -> jax.Array:
    tied = _ordered_bits(leaf, limit.dtype) == limit
    return _tally([tied & _before(leaf, cut) for cut in cuts], spread)


@functools.partial(jax.jit, static_argnums=1)
def _invalid(leaf: jax.Array, spread: bool) -> jax.Array:
    return _tally([leaf != leaf, leaf < 0], spread)


@jax.jit
def _mask(leaf: jax.Array, limit: jax.Array, cut: jax.Array) -> jax.Array:
    """Entries above the limit, and those that equal it before the cut."""
    keys = _ordered_bits(leaf, limit.dtype)
    return (keys > limit) | ((keys == limit) & _before(leaf, cut[0]))


def _pair(leaf: jax.Array, positions: Sequence[int]) -> np.ndarray:
    """Row-major positions as the two words in which entries are numbered."""
    _, low = index_axes(leaf.shape, "element")
    size = max(1, math.prod(leaf.shape[axis] for axis in low))
    # A position past a leaf of 2**32 entries still fits: as row 1, column 0.
    return np.array([divmod(position, size) for position in positions], np.uint32)


def _before(leaf: jax.Array, cut: jax.Array) -> jax.Array:
    """Which entries stand before a position given as two words."""
    high, low = index_axes(leaf.shape, "element")
    row, column = index_along(leaf, high), index_along(leaf, low)
    return (row < cut[0]) | ((row == cut[0]) & (column < cut[1]))


def _ordered_bits(x: jax.Array, word: np.dtype) -> jax.Array:
    """Unsigned integers that order as the non-negative floats do."""
    wide = x.astype(jnp.float64 if word == np.uint64 else jnp.float32)
    return jax.lax.bitcast_convert_type(jnp.abs(wide), word)  # abs: -0.0 is 0.0


def _tally(tests: Sequence[jax.Array], spread: bool) -> jax.Array:
    """How many entries pass each test, as (tests, 2) words of base 2**16."""
    shape = tests[0].shape
    first = 0
    while math.prod(shape[first:]) > _COUNTABLE:
        first += 1
    axes = tuple(range(first, len(shape)))
    ones = [test.astype(jnp.uint32) for test in tests]
    if spread:
        # Plain sums: the SPMD partitioner makes each a scalar all-reduce.
        counts = [jnp.sum(one, axis=axes, dtype=jnp.uint32) for one in ones]
    else:
        # One reduction with many results: XLA reads the leaf once, and on a CPU it
        # rewrites plain sums in a way that writes every test out to memory first.
        zeros = [np.uint32(0)] * len(ones)
        add = lambda x, y: [a + b for a, b in zip(x, y, strict=True)]
        counts = jax.lax.reduce(ones, zeros, add, axes)
    return jnp.stack([jnp.stack(exact_sum(c, low_bits=16)) for c in counts])


def _totals(tallies: Sequence[jax.Array]) -> list[int]:
    """The counts of all leaves together, as Python integers."""
    words = np.stack([np.asarray(tally).astype(object) for tally in tallies])
    return [int(high * 2**16 + low) for high, low in words.sum(axis=0)]


def _is_spread(leaf: jax.Array) -> bool:
    return len(leaf.sharding.device_set) > 1
