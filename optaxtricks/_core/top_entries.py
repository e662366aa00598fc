"""The k largest entries of a list of arrays, without sorting or gathering them.

Non-negative floats order as their bits do, so the k-th largest is found by bisection
on its bits: each pass counts, leaf by leaf, the entries that reach a few candidate
thresholds, and only those counts leave a device. Ties are cut by bisection on
position, in the one leaf where the cut falls.

The loop runs in Python, on integers of any size. One compiled count then serves all
leaves of a shape, where a loop inside a program would compile each leaf's own.

The layers of a stack are searched side by side: numbers below then have one more
axis, the last, that counts layers, and a pass is mapped over it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .counter_hash import index_axes
from .counts import exact_sum
from .positions import index_along
from .shardings import along

# Bits of the answer that one pass decides. One reading of the scores serves all
# 2**3 - 1 candidates, and reading is what a pass costs; with a fourth bit the
# comparisons cost more than the passes they save.
_BITS = 3
# Counts below this stay exact in the uint32 of one reduction.
_COUNTABLE = 2**31


def largest(
    leaves: Sequence[jax.Array], rank: int, *, exact: bool, axis: int | None = None
) -> list[jax.Array]:
    """Masks of the `rank` largest entries of non-negative floating-point leaves.

    Args:
      leaves: concrete arrays.
      rank: how many entries to keep, at least one and at most all.
      exact: keep exactly that many, the first ones among equals; otherwise also all
        entries equal to the last one kept.
      axis: the layer axis of the leaves, of one size; so many are kept in each layer.
    """
    wide = any(leaf.dtype == jnp.float64 for leaf in leaves)
    word = np.dtype(np.uint64 if wide else np.uint32)
    lanes = () if axis is None else (leaves[0].shape[axis],)
    goal = np.full(lanes, rank, object)

    def reaching(thresholds: np.ndarray) -> np.ndarray:
        words = thresholds.astype(word)
        return _totals([_counted(_reaching, leaf, axis, words) for leaf in leaves])

    threshold, reached = _search(
        reaching,
        lambda counts: counts >= rank,
        goal=goal,
        stop=2 ** (8 * word.itemsize),
    )
    limit = np.asarray(threshold, word)
    if not exact or np.all(reached == goal):
        ends = [goal * 0 + math.prod(_layer_shape(leaf, axis)) for leaf in leaves]
        return [
            _masked(leaf, axis, limit, end)
            for leaf, end in zip(leaves, ends, strict=True)
        ]
    tests = [_counted(_against, leaf, axis, limit) for leaf in leaves]
    missing = goal - _totals(tests)[0]
    masks: list[jax.Array] = []
    for leaf, test in zip(leaves, tests, strict=True):
        ties = _totals([test])[1]
        share = np.minimum(missing, ties)
        missing = missing - share
        cut = _cut(leaf, axis, limit, share, ties)
        masks.append(_masked(leaf, axis, limit, cut))
    return masks


def invalid(leaves: Sequence[jax.Array]) -> list[list[int]]:
    """For each leaf, how many entries are NaN and how many negative."""
    tallies = [_counted(_invalid, leaf, None) for leaf in leaves]
    return [_totals([tally]).tolist() for tally in tallies]


def _cut(leaf: jax.Array, axis: int | None, limit: Any, share: Any, ties: Any) -> Any:
    """The position before which `share` of the `ties` with the limit stand."""
    size = math.prod(_layer_shape(leaf, axis))
    if np.all((share == 0) | (share == ties)):
        return np.where(share > 0, size, 0).astype(object)

    def before(cuts: np.ndarray) -> np.ndarray:
        words = _pair(leaf, axis, cuts)
        return _totals([_counted(_tied_before, leaf, axis, limit, words)])

    fits = lambda counts: counts <= share
    return _search(before, fits, goal=np.asarray(share, object), stop=size + 1)[0]


def _search(
    count: Callable[[np.ndarray], np.ndarray],
    fits: Callable[[np.ndarray], np.ndarray],
    *,
    goal: np.ndarray,
    stop: int,
) -> tuple[Any, Any]:
    """The largest number below `stop` whose count fits, or any whose count is `goal`.

    Zero must fit, and a number below one that fits. Returns the number and its count,
    which is unknown for zero; both for each lane of `goal`.
    """
    best, reached = goal * 0, np.full(goal.shape, None)
    start = (stop - 1).bit_length() - 1
    for shift in range(start // _BITS * _BITS, -1, -_BITS):
        # As objects: Python's integers, where NumPy's might round.
        steps = np.array([best + (i << shift) for i in range(1, 2**_BITS)], object)
        counts = count(np.minimum(steps, stop - 1))
        taken = np.sum((steps < stop) & fits(counts), axis=0)
        best = best + (taken.astype(object) << shift)
        last = np.take_along_axis(counts, np.maximum(taken - 1, 0)[None], 0)[0]
        reached = np.where(taken > 0, last, reached)
        if np.all(reached == goal):
            break
    return best, reached


def _counted(pass_: Any, leaf: jax.Array, axis: int | None, *words: Any) -> jax.Array:
    """What a counting pass gives for a leaf or, along a last axis, for its layers."""
    sharding = leaf.sharding
    spread, whole = len(sharding.device_set) > 1, None
    if axis is None:
        return pass_(leaf, *words, spread)
    if isinstance(sharding, NamedSharding):
        # Every process reads the counts of all layers.
        whole = NamedSharding(sharding.mesh, PartitionSpec())
    return _each_layer(pass_, axis, -1, (spread,), whole)(leaf, *words)


def _masked(leaf: jax.Array, axis: int | None, limit: Any, cut: Any) -> jax.Array:
    """The mask of a leaf, given a limit and a cut for it or for each layer."""
    words = limit, _pair(leaf, axis, np.asarray(cut, object)[None])
    if axis is None:
        return _mask(leaf, *words)
    return _each_layer(_mask, axis, axis, (), None)(leaf, *words)


@functools.cache
def _each_layer(pass_: Any, axis: int, out_axis: int, static: Any, out: Any) -> Any:
    """A pass over the layers of a leaf, which takes words of each along a last axis."""

    def run(leaf: jax.Array, *words: jax.Array) -> jax.Array:
        one = lambda layer, *words: pass_(layer, *words, *static)
        own = [along(leaf, axis, word) for word in words]
        in_axes = (axis, *[-1] * len(own))
        return jax.vmap(one, in_axes=in_axes, out_axes=out_axis)(leaf, *own)

    return jax.jit(run, out_shardings=out)


def _layer_shape(leaf: jax.Array, axis: int | None) -> tuple[int, ...]:
    """The shape of one layer, or of the leaf if it has no layers."""
    return tuple(n for i, n in enumerate(leaf.shape) if i != axis)


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


def _pair(leaf: jax.Array, axis: int | None, positions: np.ndarray) -> np.ndarray:
    """Row-major positions as the two words in which entries are numbered."""
    shape = _layer_shape(leaf, axis)
    _, low = index_axes(shape, "element")
    size = max(1, math.prod(shape[i] for i in low))
    # A position past a leaf of 2**32 entries still fits: as row 1, column 0.
    pair = positions // size, positions % size
    return np.stack(pair, axis=1).astype(np.uint32)


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


def _totals(tallies: Sequence[jax.Array]) -> np.ndarray:
    """The counts of all leaves together, as Python integers."""
    words = np.stack([np.asarray(tally).astype(object) for tally in tallies])
    high, low = np.moveaxis(words.sum(axis=0), 1, 0)
    return high * 2**16 + low
