"""Two rates in one optimizer: SimSiam's predictor beside its encoder."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optaxtricks
from tests.problems import applied, assert_same, gradients, small_tree

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)


def simsiam(*, momentum=0.9, decay=1e-2):
    """SGD with coupled decay, without a rate."""
    return optax.chain(optax.add_decayed_weights(decay), optax.trace(momentum))


def cosine(step):
    return 0.5 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.asarray(step, jnp.float32) / 10))


def test_equals_sgd_entry_by_entry():
    params = {"encoder": {"w": jnp.asarray([1.0, -2.0])}, "predictor": jnp.ones(2)}
    tx = ot.two_timescale(simsiam(), cosine, fast="^predictor", fast_learning_rate=0.5)
    state = tx.init(params)
    theta = {p: np.asarray(x, float) for p, x in _flat(params)}
    m = {path: np.zeros(2) for path in theta}
    for t in range(5):
        grads = gradients(params, seed=t)
        updates, state = tx.update(grads, state, params)
        params = applied(params, updates)
        rates = {
            "encoder/w": 0.25 * (1 + np.cos(np.pi * t / 10)),
            "predictor": 0.5,
        }
        for path, grad in _flat(grads):
            m[path] = 0.9 * m[path] + np.asarray(grad, float) + 0.01 * theta[path]
            theta[path] = theta[path] - rates[path] * m[path]
        for path, value in _flat(params):
            np.testing.assert_allclose(value, theta[path], rtol=1e-5)


def test_equal_rates_are_one_optimizer():
    params = small_tree()
    tx = ot.two_timescale(
        optax.trace(0.9), 0.125, fast=r"^emb|b$", fast_learning_rate=0.125
    )
    want = optax.sgd(0.125, momentum=0.9)
    state, other = tx.init(params), want.init(params)
    for seed in range(3):
        got, state = tx.update(gradients(params, seed), state, params)
        expected, other = want.update(gradients(params, seed), other, params)
        assert_same(got, expected)


def test_a_fixed_ratio_is_what_scale_by_path_does():
    params = small_tree()
    grads = gradients(params)
    tx = ot.two_timescale(
        optax.identity(), 0.25, fast="^layer/", fast_learning_rate=1.0
    )
    other = optax.chain(ot.scale_by_path({"^layer/": 4.0}), optax.sgd(0.25))
    got, _ = tx.update(grads, tx.init(params), params)
    assert_same(got, other.update(grads, other.init(params), params)[0])


def test_the_inner_state_is_one_tree():
    params = small_tree()
    tx = ot.two_timescale(optax.trace(0.9), cosine, fast="emb", fast_learning_rate=0.1)
    state = tx.init(params)
    assert_same(state[0].trace, jax.tree.map(jnp.zeros_like, params))


def test_every_kind_of_selector():
    params = small_tree()
    kinds = [
        "^emb$",
        lambda path, leaf: path == "emb",
        {"emb": True, "layer": False, "scale": False},
    ]
    for fast in kinds:
        tx = ot.two_timescale(optax.identity(), 0.5, fast=fast, fast_learning_rate=2.0)
        got, _ = tx.update(params, tx.init(params))
        rates = {"emb": 2.0, "layer": {"b": 0.5, "w": 0.5}, "scale": 0.5}
        assert_same(got, jax.tree.map(lambda rate, x: -rate * x, rates, params))


def test_in_an_nnx_optimizer():
    model = nnx.Sequential(
        nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 4, rngs=nnx.Rngs(1))
    )
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    tx = ot.two_timescale(
        optax.trace(0.9), 0.25, fast="^layers/1/", fast_learning_rate=1.0
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, before))
    moved = jax.tree.map(jnp.subtract, before, nnx.state(model, nnx.Param))
    np.testing.assert_allclose(moved["layers"][0]["kernel"][...], 0.25, rtol=1e-5)
    np.testing.assert_allclose(moved["layers"][1]["kernel"][...], 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("fast", "message"),
    [
        ("predicter", r"fast 'predicter' matches no leaf\. Paths: 'emb', 'layer/b'"),
        ("", r"fast '' matches every leaf\. Paths: 'emb', 'layer/b'"),
        (lambda path, leaf: True, r"fast \(a predicate\) matches every leaf"),
        (True, r"fast \(a tree of bools\) matches every leaf"),
        ("(", r"fast '\(' is not a regular expression"),
    ],
    ids=["none", "all", "predicate", "tree", "pattern"],
)
def test_a_choice_of_none_or_all_is_an_error(fast, message):
    tx = ot.two_timescale(optax.identity(), 0.1, fast=fast, fast_learning_rate=1.0)
    with pytest.raises(ValueError, match=message):
        tx.init(small_tree())


def test_leaves_that_were_masked_out_may_be_what_is_left_over():
    make = lambda fast: ot.two_timescale(
        optax.identity(), 0.5, fast=fast, fast_learning_rate=2.0
    )
    shown = {"a": jnp.ones(2), "b": optax.MaskedNode()}
    for fast in "^a$", lambda path, leaf: True:
        tx = make(fast)
        assert tx.update(shown, tx.init(shown))[0]["a"].tolist() == [-2.0, -2.0]
    with pytest.raises(ValueError, match=r"matches every leaf\. Paths: 'a', 'b'"):
        make("a|b").init(shown)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inner": 0.1}, TypeError, "inner must be an optax.GradientTransformation"),
        ({"learning_rate": "x"}, TypeError, "learning_rate must be a number or"),
        (
            {"learning_rate": float("nan")},
            ValueError,
            "learning_rate must be at least 0 and finite",
        ),
        ({"fast_learning_rate": None}, TypeError, "fast_learning_rate must be a num"),
        (
            {"fast_learning_rate": float("inf")},
            ValueError,
            "fast_learning_rate must be at least 0 and finite, got inf",
        ),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    good = {"inner": optax.identity(), "learning_rate": 0.1}
    good |= {"fast": "a", "fast_learning_rate": 1.0}
    with pytest.raises(error, match=message):
        ot.two_timescale(**(good | arguments))


def _flat(tree):
    pairs = jax.tree.leaves_with_path(tree)
    name = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
    return [(name(keys), leaf) for keys, leaf in pairs]
