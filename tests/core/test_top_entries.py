"""Counting in parts and in two words, and the search on a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot
from optaxtricks._core import top_entries
from optaxtricks._core.pairs import as_pair, at_least, equal
from optaxtricks._core.parts import plan_for
from optaxtricks._core.top_entries import largest

RNG = np.random.default_rng(0)


def value(pair):
    return [2**16 * int(h) + int(w) for h, w in zip(*map(np.ravel, pair), strict=True)]


def test_pairs_hold_what_no_word_holds():
    numbers = [0, 1, 2**16 - 1, 2**16, 2**31, 2**32 - 1, 2**32, 2**45 + 12345]
    assert value(as_pair(numbers)) == numbers
    for x in numbers:
        for y in numbers:
            left, right = as_pair([x]), as_pair([y])
            assert bool(at_least(left, right)[0]) == (x >= y)
            assert bool(equal(left, right)[0]) == (x == y)


def test_totals_of_groups_exceed_a_word():
    shapes = [(2**31,)] * 5 + [(3,)]
    plan = plan_for(shapes, [0, 0, 0, 0, 1, 1], spread=False)
    counts = [2**31, 2**31 - 1, 2**32 - 1, 7, 2**31, 3]
    total = top_entries._total(jnp.asarray(counts, jnp.uint32)[:, None], plan)
    assert value(total) == [sum(counts[:4]), sum(counts[4:])]


def test_shares_go_to_the_first_parts():
    counts = [2**31, 2**31, 5, 2**31, 9]
    plan = plan_for([(2**31,)] * 5, [0, 0, 0, 0, 1], spread=False)
    for rank, above, want in (
        (2**32 + 10, 6, [2**31, 2**31, 4, 0]),
        (2**32 + 10, 0, [2**31, 2**31, 5, 5]),
        (2**31 - 1, 0, [2**31 - 1, 0, 0, 0]),
        (2**33, 2**33 - 1, [1, 0, 0, 0]),
    ):
        shares = top_entries._shares(
            jnp.asarray(counts, jnp.uint32),
            as_pair([rank, 4]),
            as_pair([above, 1]),
            plan,
        )
        assert shares.tolist() == [*want, 3]


def test_large_leaves_are_counted_in_parts_that_cover_them():
    for shape in ((2**20, 2**16), (80, 8192, 28672), (2**32 - 1,), (3, 2**31), (5, 4)):
        plan = plan_for([shape], [0], spread=False)
        sizes = [(part.stop - part.start) * part.row_size for part in plan.parts]
        assert sum(sizes) == np.prod(shape, dtype=np.int64) and max(sizes) <= 2**31
        assert plan.parts[0].start == 0
        assert [p.stop for p in plan.parts[:-1]] == [p.start for p in plan.parts[1:]]
    with pytest.raises(ValueError, match="too large; reshape"):
        plan_for([(2**33,)], [0], spread=False)


@pytest.mark.parametrize(("limit", "spread"), [(12, False), (12, True)])
def test_parts_do_not_change_the_mask(limit, spread):
    shapes = [(3, 2, 5), (7,), ()]
    leaves = [jnp.asarray(RNG.integers(0, 3, s), jnp.float32) for s in shapes]
    for groups, sizes in (([0] * 3, [38]), ([0, 1, 2], [30, 7, 1])):
        ranks = as_pair([max(1, size // 2) for size in sizes])
        whole, _ = largest(
            leaves,
            ranks,
            as_pair(sizes),
            plan=plan_for(shapes, groups, spread=False),
            exact=True,
        )
        cut, _ = largest(
            leaves,
            ranks,
            as_pair(sizes),
            plan=plan_for(shapes, groups, spread=spread, limit=limit),
            exact=True,
        )
        for one, other in zip(whole, cut, strict=True):
            np.testing.assert_array_equal(one, other)


SPECS = {"a": P("x", "y"), "b": P(), "c": P(None, "x")}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (AxisType.Auto, {}),
        (AxisType.Explicit, {}),
        (AxisType.Auto, {"scope": "leaf", "rule": "percentile"}),
    ],
    ids=str,
)
def test_on_a_mesh_only_counts_travel(kind, how):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    shapes = {"a": (16, 24), "b": (5, 3), "c": (3, 20)}
    tree = {k: np.float32(RNG.integers(0, 9, s)) for k, s in shapes.items()}
    there = {
        k: jax.device_put(x, NamedSharding(mesh, SPECS[k])) for k, x in tree.items()
    }
    choose = lambda scores: ot.top_fraction_mask(scores, 0.3, **how)
    want = choose(tree)
    compiled = jax.jit(choose).lower(there).compile()
    for k, mask in compiled(there).items():
        np.testing.assert_array_equal(mask, want[k])
        assert mask.sharding.is_equivalent_to(there[k].sharding, mask.ndim)
    text = compiled.as_text() or ""
    moved = re.findall(
        r"= (.+?) (all-[a-z-]+|collective-[a-z-]+|reduce-scatter)\(", text
    )
    assert moved and {kind for _, kind in moved} == {"all-reduce"}
    shapes = {
        shape for shapes, _ in moved for shape in re.findall(r"\w+\[.*?\]", shapes)
    }
    assert shapes == {"u32[]"}


@pytest.mark.parametrize("exact", [True, False])
def test_one_device_needs_no_temporary_of_the_scores_size(exact):
    scores = [jnp.ones((512, 512)), jnp.ones(512)]
    lowered = largest.lower(
        scores,
        as_pair([1000]),
        as_pair([512 * 513]),
        plan=plan_for([s.shape for s in scores], [0, 0], spread=False),
        exact=exact,
    )
    analysis = lowered.compile().memory_analysis()
    assert analysis is not None and analysis.temp_size_in_bytes < 512 * 513
