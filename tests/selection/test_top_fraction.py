"""Top-fraction masks: the rules, their ties, and the errors."""

from typing import Any, cast

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optaxtricks

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

RNG = np.random.default_rng(0)
SHAPES = [(7, 5), (3,), (), (0, 4), (11, 2, 3)]
TIES = np.array([0, 0, 0, 0, 0, 0, 1, 2, 3, 4], np.float32)
ONE_TO_EIGHT = np.arange(1, 9, dtype=np.float32)


def draw(tied):
    value = (
        (lambda s: RNG.integers(0, 6, s)) if tied else (lambda s: RNG.gamma(1, 1, s))
    )
    return [np.asarray(value(shape), np.float32) for shape in SHAPES]


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def first_of_sorted(scores, fraction):
    """The exact rule by a stable sort of everything."""
    wanted = np.zeros(scores.size, bool)
    count = max(1, int(fraction * scores.size + 1e-6))
    wanted[np.argsort(-scores, kind="stable")[:count]] = True
    return wanted


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fraction", [1e-6, 0.25, 0.87, 1.0])
def test_exact_rule_is_a_stable_sort(tied, fraction):
    tree = draw(tied)
    got = ot.top_fraction_mask(tree, fraction)
    np.testing.assert_array_equal(flat(got), first_of_sorted(flat(tree), fraction))
    each = ot.top_fraction_mask(tree, fraction, scope="leaf")
    for scores, mask in zip(tree, each, strict=True):
        assert mask.shape == scores.shape and mask.dtype == bool
        if scores.size:
            want = first_of_sorted(np.ravel(scores), fraction)
            np.testing.assert_array_equal(np.ravel(mask), want)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fraction", [0.01, 0.1234, 0.5, 0.95])
def test_percentile_rule_is_numpys(tied, fraction):
    tree = draw(tied)
    threshold = np.percentile(flat(tree).astype(np.float64), 100 * (1 - fraction))
    got = flat(ot.top_fraction_mask(tree, fraction, rule="percentile"))
    np.testing.assert_array_equal(got, flat(tree) >= threshold)


@pytest.mark.parametrize(
    ("scores", "fraction", "percentile", "exact"),
    [
        (TIES, 0.5, 10, 5),  # the percentile is zero: everything is kept
        (TIES, 0.3, 3, 3),
        (ONE_TO_EIGHT, 0.3, 3, 2),
        (ONE_TO_EIGHT, 0.25, 2, 2),
        (ONE_TO_EIGHT, 0.5, 4, 4),
        (ONE_TO_EIGHT, 1.0, 8, 8),
        (ONE_TO_EIGHT, 0.01, 1, 1),
    ],
)
def test_counts_of_both_rules(scores, fraction, percentile, exact):
    assert ot.top_fraction_mask(scores, fraction).sum() == exact
    rule = ot.top_fraction_mask(scores, fraction, rule="percentile")
    assert rule.sum() == percentile


def test_percentile_count_of_distinct_scores():
    """floor(p (n - 1)) + 1 of them, also where p (n - 1) is whole in decimals."""
    for n in (11, 101, 1001):
        scores = RNG.permutation(n).astype(np.float32)
        for tenths in range(1, 11):
            mask = ot.top_fraction_mask(scores, tenths / 10, rule="percentile")
            assert mask.sum() == tenths * (n - 1) // 10 + 1


def test_exact_count_takes_decimals_as_they_are_meant():
    """0.29 * 100 is 28.999999999999996 in binary."""
    assert ot.top_fraction_mask(ONE_TO_EIGHT.repeat(100)[:100], 0.29).sum() == 29


def test_ties_fall_to_the_first_leaf_then_the_first_row():
    mask = ot.top_fraction_mask({"b": jnp.ones((2, 2)), "a": jnp.ones(3)}, 5 / 7)
    assert mask["a"].tolist() == [True] * 3
    assert mask["b"].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_neighbouring_floats_are_told_apart(dtype):
    word = jnp.uint32 if dtype == jnp.float32 else jnp.uint16
    for start in (0, 1000, int(jnp.finfo(dtype).max.view(word)) - 62):
        bits = RNG.permutation(64) + start  # subnormal, normal, up to infinity
        scores = jax.lax.bitcast_convert_type(jnp.asarray(bits, word), dtype)
        mask = ot.top_fraction_mask(scores, 0.5)
        np.testing.assert_array_equal(mask, bits >= start + 32)


def test_float64_is_ranked_in_full_and_in_mixed_trees():
    with jax.enable_x64(True):
        steps = RNG.permutation(64)
        tree = {"a": jnp.asarray(1 + steps * 2.0**-52), "b": jnp.ones(4, jnp.float32)}
        mask = ot.top_fraction_mask(tree, 32 / 68)
        np.testing.assert_array_equal(mask["a"], steps >= 32)
        assert not mask["b"].any()


def test_infinity_ranks_first_and_negative_zero_as_zero():
    scores = jnp.array([-0.0, 3e38, jnp.inf, 0.0])
    for fraction, want in ((0.25, [2]), (0.5, [1, 2]), (0.75, [0, 1, 2])):
        kept = np.flatnonzero(ot.top_fraction_mask(scores, fraction))
        assert kept.tolist() == want


def test_where_and_holes_come_back_as_true():
    scores = {
        "body": {"w": jnp.arange(4.0), "b": None},
        "head": jnp.ones(2),
        "out": optax.MaskedNode(),
    }
    mask = ot.top_fraction_mask(scores, 0.5, where="^body")
    assert mask["body"]["w"].tolist() == [False, False, True, True]
    assert mask["body"]["b"] is True and mask["head"] is True
    assert mask["out"] == optax.MaskedNode()
    assert ot.top_fraction_mask(scores, 0.5)["body"]["b"] is True
    chosen = {"body": True, "head": False, "out": False}
    by_tree = ot.top_fraction_mask(scores, 0.5, where=chosen)
    assert by_tree["head"] is True


@pytest.mark.parametrize(
    "wrap",
    [flax.core.freeze, nnx.State, lambda tree: (tree["a"], [tree["b"]])],
)
def test_containers_are_kept(wrap):
    tree = wrap({"a": jnp.arange(4.0), "b": jnp.zeros(2)})
    mask = ot.top_fraction_mask(tree, 0.5)
    assert jax.tree.structure(mask) == jax.tree.structure(tree)
    assert flat(mask).tolist() == [False, True, True, True, False, False]


def test_traced_scores_are_an_error():
    with pytest.raises(TypeError, match="leaf at 'w' is traced: make the mask outside"):
        jax.jit(lambda s: ot.top_fraction_mask({"w": s}, 0.5))(jnp.ones(3))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"keep_fraction": 0},
            ValueError,
            r"keep_fraction must lie in \(0, 1\], got 0",
        ),
        ({"keep_fraction": 1.5}, ValueError, "keep_fraction must lie"),
        ({"keep_fraction": float("nan")}, ValueError, "keep_fraction must lie"),
        ({"keep_fraction": "0.5"}, TypeError, "keep_fraction must be a number"),
        ({"keep_fraction": lambda s: 1}, TypeError, "keep_fraction must be a number"),
        ({"scope": "layer"}, ValueError, "scope must be one of"),
        ({"rule": "top"}, ValueError, "rule must be one of"),
        ({"where": "decoder"}, ValueError, "where 'decoder' matches no leaf.*'w'"),
        ({"scores": {"w": jnp.arange(3)}}, TypeError, "'w' has dtype int32"),
        ({"scores": {"w": jnp.ones(2, complex)}}, TypeError, "'w' has dtype complex64"),
        ({"scores": {"w": np.ones(2)}}, ValueError, "'w' have dtype float64"),
        (
            {"scores": {"w": jnp.ones((0, 2))}},
            ValueError,
            "no eligible entry: 1 leaves",
        ),
        ({"scores": {"w": None}}, ValueError, "no eligible entry: 0 leaves"),
        ({"scores": {}}, ValueError, "no eligible entry"),
    ],
)
def test_bad_arguments(arguments, error, message):
    arguments = {"scores": {"w": jnp.ones(2)}, "keep_fraction": 0.5, **arguments}
    with pytest.raises(error, match=message):
        ot.top_fraction_mask(**arguments)


def test_traced_fraction_is_an_error():
    with pytest.raises(TypeError, match="keep_fraction must be a number, not a traced"):
        jax.jit(lambda p: ot.top_fraction_mask(jnp.ones(2), p))(0.5)


def test_nan_and_negative_scores_are_named():
    scores = {"good": jnp.ones(2), "bad": jnp.array([jnp.nan, -1.0, -jnp.inf, 0.0])}
    with pytest.raises(ValueError, match=r"'bad' has 1 NaN and 2 negative entries"):
        ot.top_fraction_mask(scores, 0.5)
    assert ot.top_fraction_mask(scores, 0.5, where="good")["bad"] is True
