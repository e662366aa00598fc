"""The k largest entries: counts past one word, cuts among ties, and on a mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot
from optaxtricks._core import top_entries
from optaxtricks._core.counter_hash import index_axes
from optaxtricks._core.top_entries import largest

RNG = np.random.default_rng(0)


def by_sorting(leaves, rank):
    """The first `rank` entries of a stable sort by falling score."""
    flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:rank]] = True
    return kept


def flat(masks):
    return np.concatenate([np.ravel(mask) for mask in masks])


@pytest.mark.parametrize("rank", [1, 2, 7, 19, 37, 38])
@pytest.mark.parametrize("values", [2, 5, 10**6])
def test_equals_a_stable_sort(rank, values):
    shapes = [(3, 2, 5), (7,), (), (0, 4)]
    leaves = [jnp.asarray(RNG.integers(0, values, s), jnp.float32) for s in shapes]
    want = by_sorting(leaves, rank)
    np.testing.assert_array_equal(flat(largest(leaves, rank, exact=True)), want)
    scores = flat(leaves)
    at_least = scores >= np.sort(scores)[-rank]
    np.testing.assert_array_equal(flat(largest(leaves, rank, exact=False)), at_least)


def test_every_power_of_two_is_told_apart():
    """Thresholds over the whole range of float32, subnormal numbers aside."""
    scores = jnp.asarray(2.0 ** np.arange(-126, 128), jnp.float32)
    for rank in (1, 2, 100, 253, 254):
        (mask,) = largest([scores], rank, exact=True)
        assert np.flatnonzero(mask)[0] == 254 - rank and mask.sum() == rank


@pytest.mark.parametrize("spread", [False, True])
def test_counts_in_two_words_and_two_stages(monkeypatch, spread):
    """As for a leaf too large for one reduction: rows are counted first."""
    monkeypatch.setattr(top_entries, "_COUNTABLE", 10)
    tests = [jnp.asarray(RNG.integers(0, 2, (4, 3, 5)) == 1) for _ in range(2)]
    tally = top_entries._tally(tests, spread)
    assert top_entries._totals([tally]).tolist() == [int(test.sum()) for test in tests]
    many = jnp.array([[2**15, 2**16 - 1], [0, 3]], jnp.uint32)
    assert top_entries._totals([many, many]).tolist() == [2 * (2**31 + 2**16 - 1), 6]


def test_ties_are_cut_where_entries_have_two_index_words(monkeypatch):
    """As in a leaf of more than 2**32 entries, here with words of 8 values."""
    narrow = functools.partial(index_axes, word=8)
    monkeypatch.setattr(top_entries, "index_axes", narrow)
    jax.clear_caches()
    leaves = [jnp.ones((3, 2, 4)), jnp.asarray(RNG.integers(0, 2, (5, 8)), jnp.float32)]
    for rank in (1, 8, 9, 23, 24, 30, 44):
        got = flat(largest(leaves, rank, exact=True))
        np.testing.assert_array_equal(got, by_sorting(leaves, rank))
    jax.clear_caches()


def test_a_leaf_past_two_to_the_32_lowers():
    huge = jax.ShapeDtypeStruct((80, 8192, 28672), jnp.float32)
    limit = jax.ShapeDtypeStruct((), jnp.uint32)
    cuts = jax.ShapeDtypeStruct((7, 2), jnp.uint32)
    text = top_entries._tied_before.lower(huge, limit, cuts, False).as_text()
    assert "tensor<80xui32>" in text  # one count a row, each below 2**32


# Layers


def layers_of(leaf, axis):
    return [jnp.take(leaf, i, axis) for i in range(leaf.shape[axis])]


def by_layer(leaves, axis, rank, exact):
    """Each layer's mask by itself, put together again."""
    apart = zip(*[layers_of(leaf, axis) for leaf in leaves], strict=True)
    masks = [largest(list(group), rank, exact=exact) for group in apart]
    return [np.stack(parts, axis) for parts in zip(*masks, strict=True)]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("values", [2, 5, 10**6])
@pytest.mark.parametrize("axis", [0, 1])
def test_layers_are_searched_side_by_side_as_each_alone(exact, values, axis):
    shapes = [(3, 3, 5), (3, 3)]
    leaves = [jnp.asarray(RNG.integers(0, values, s), jnp.float32) for s in shapes]
    for rank in (1, 5, 17, 18):
        got = largest(leaves, rank, exact=exact, axis=axis)
        for mask, want in zip(got, by_layer(leaves, axis, rank, exact), strict=True):
            np.testing.assert_array_equal(mask, want)


def test_layers_whose_entries_have_two_index_words(monkeypatch):
    narrow = functools.partial(index_axes, word=8)
    monkeypatch.setattr(top_entries, "index_axes", narrow)
    jax.clear_caches()
    leaf = jnp.asarray(RNG.integers(0, 2, (5, 4, 8)), jnp.float32)
    for rank in (1, 8, 23, 40):
        (got,) = largest([leaf], rank, exact=True, axis=1)
        (want,) = by_layer([leaf], 1, rank, True)
        np.testing.assert_array_equal(got, want)
    jax.clear_caches()


def test_as_many_traces_for_a_hundred_layers_as_for_one(monkeypatch):
    traces, tally = [], top_entries._tally
    spy = lambda tests, spread: traces.append(len(tests)) or tally(tests, spread)
    monkeypatch.setattr(top_entries, "_tally", spy)
    for layers in (1, 100):
        traces.clear()
        leaf = jnp.asarray(RNG.integers(0, 3, (layers, 13)), jnp.float32)
        largest([leaf], 6, exact=True, axis=0)
        assert len(traces) <= 3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_layers_need_no_temporary_of_the_scores_size(axis):
    leaf = jnp.ones((64, 64, 64))
    for pass_, words in (
        (top_entries._reaching, ((7, 64),)),
        (top_entries._against, ((64,),)),
        (top_entries._tied_before, ((64,), (7, 2, 64))),
        (top_entries._mask, ((64,), (1, 2, 64))),
    ):
        counts = pass_ is not top_entries._mask
        run = top_entries._each_layer(
            pass_, axis, -1 if counts else axis, (False,) if counts else (), None
        )
        words = [np.ones(shape, np.uint32) for shape in words]
        analysis = run.lower(leaf, *words).compile().memory_analysis()
        assert analysis.temp_size_in_bytes < leaf.nbytes / 16


SPECS = {"a": P("x", "y"), "b": P(), "c": P(None, "x")}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("how", [{}, {"scope": "leaf", "rule": "percentile"}], ids=str)
def test_on_a_mesh_the_masks_are_the_same_and_stay_there(kind, how):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    shapes = {"a": (16, 24), "b": (5, 3), "c": (3, 20)}
    tree = {k: np.float32(RNG.integers(0, 9, s)) for k, s in shapes.items()}
    there = {
        k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in tree.items()
    }
    want = ot.top_fraction_mask(tree, 0.3, **how)
    for k, mask in ot.top_fraction_mask(there, 0.3, **how).items():
        np.testing.assert_array_equal(mask, want[k])
        assert mask.sharding.is_equivalent_to(there[k].sharding, mask.ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh_only_counts_travel(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    leaf = jax.device_put(jnp.ones((16, 24)), NamedSharding(mesh, P("x", "y")))
    limit, cuts = np.uint32(0), np.zeros((7, 2), np.uint32)
    programs = {
        "reaching": top_entries._reaching.lower(leaf, cuts[:, 0], True),
        "against": top_entries._against.lower(leaf, limit, True),
        "tied before": top_entries._tied_before.lower(leaf, limit, cuts, True),
        "mask": top_entries._mask.lower(leaf, limit, cuts),
    }
    for name, program in programs.items():
        text = program.compile().as_text() or ""
        moved = re.findall(
            r"= (.+?) (all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\(", text
        )
        assert {kind for _, kind in moved} == (
            set() if name == "mask" else {"all-reduce"}
        )
        sizes = {size for shapes, _ in moved for size in re.findall(r"\[.*?\]", shapes)}
        assert sizes <= {"[]"}


def test_one_device_needs_no_temporary_of_the_scores_size():
    leaf, limit = jnp.ones((512, 512)), np.uint32(0)
    cuts = np.zeros((7, 2), np.uint32)
    for program in (
        top_entries._reaching.lower(leaf, cuts[:, 0], False),
        top_entries._against.lower(leaf, limit, False),
        top_entries._tied_before.lower(leaf, limit, cuts, False),
        top_entries._mask.lower(leaf, limit, cuts),
    ):
        analysis = program.compile().memory_analysis()
        assert analysis is not None and analysis.temp_size_in_bytes < 512 * 512


def test_one_trace_serves_all_leaves_of_a_shape(monkeypatch):
    traces, tally = [], top_entries._tally
    spy = lambda tests, spread: traces.append(len(tests)) or tally(tests, spread)
    monkeypatch.setattr(top_entries, "_tally", spy)
    largest([jnp.arange(11.0) + i for i in range(20)], 50, exact=True)
    assert traces.count(7) <= 2 and len(traces) <= 3
