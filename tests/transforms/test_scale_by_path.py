"""Factors by path: the product, the choice, schedules, and the toy of two speeds."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optaxtricks
from tests.problems import NnxNet, applied, assert_same, gradients, small_tree, values

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)


def run(tx, grads):
    """The first update of a gradient tree."""
    return tx.update(grads, tx.init(grads))[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_equals_the_product(dtype):
    grads = small_tree(dtype)
    got = run(ot.scale_by_path({"/w$": 0.3, "^emb": 7, "b$": np.float32(1.1)}), grads)
    assert_same((got["scale"],), (grads["scale"],))
    wide = np.complex128 if dtype == "complex64" else np.float64
    # The factor is a float32 number.
    pairs = [
        (got["layer"]["w"], grads["layer"]["w"], np.float32(0.3)),
        (got["layer"]["b"], grads["layer"]["b"], np.float32(1.1)),
        (got["emb"], grads["emb"], np.float32(7)),
    ]
    for new, old, factor in pairs:
        want = np.asarray(old).astype(wide) * np.float64(factor)
        # float64 holds the product of two float32 exactly; it is rounded to float32.
        narrow = np.complex64 if dtype == "complex64" else np.float32
        want = want.astype(narrow).astype(new.dtype)
        np.testing.assert_array_equal(np.asarray(new), want)


def test_the_first_pattern_that_matches_decides():
    grads = {"layer": {"b": jnp.ones(2), "w": jnp.ones(2)}}
    got = run(ot.scale_by_path({"b$": 2.0, "layer": 3.0, "w$": 5.0}), grads)
    assert got["layer"]["b"].tolist() == [2.0, 2.0]
    assert got["layer"]["w"].tolist() == [3.0, 3.0]
    got = run(ot.scale_by_path({"": 4.0}), grads)
    assert got["layer"]["b"].tolist() == [4.0, 4.0]


def test_a_factor_of_one_and_no_factor_pass_the_bits():
    odd = jnp.asarray([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32)
    grads = {"a": odd, "b": odd}
    got = run(ot.scale_by_path({"a": 1}), grads)
    assert got["a"] is odd and got["b"] is odd


def test_layer_wise_rates_move_each_layer_by_its_own():
    params: Any = {"layer": [jnp.ones(2) for _ in range(12)], "head": jnp.ones(2)}
    rates = {f"layer/{i}$": 0.8 ** (11 - i) for i in range(12)}
    tx = optax.chain(optax.sgd(0.5), ot.scale_by_path(rates))
    moved = applied(params, run(tx, params))
    for i, layer in enumerate(moved["layer"]):
        np.testing.assert_allclose(layer, 1 - 0.5 * 0.8 ** (11 - i), rtol=1e-6)
    assert moved["head"].tolist() == [0.5, 0.5]


def test_a_schedule_starts_at_zero_and_alone_makes_the_state_count():
    seen = []

    def factor(step):
        seen.append(int(step))
        return jnp.where(step < 1, 2.0, 3.0)

    tx = ot.scale_by_path({"a": factor, "b": 5.0})
    grads = {"a": jnp.ones(()), "b": jnp.ones(()), "c": jnp.ones(())}
    state, got = tx.init(grads), []
    for _ in range(3):
        updates, state = tx.update(grads, state)
        got.append([float(updates[name]) for name in "abc"])
    assert got == [[2, 5, 1], [3, 5, 1], [3, 5, 1]]
    assert seen == [0, 1, 2]  # once a step, however many leaves
    assert int(state.step) == 3
    assert not jax.tree.leaves(ot.scale_by_path({"a": 2.0}).init(grads))


def test_a_factor_may_be_injected_or_mapped_over():
    grads = small_tree()
    make = lambda kappa: ot.scale_by_path({"^layer": kappa})
    tx: Any = optax.inject_hyperparams(make)(kappa=0.25)
    updates, state = tx.update(grads, tx.init(grads))
    assert_same(updates, run(make(0.25), grads))
    kappas = jnp.asarray([0.0, 1.0, 8.0])
    batch = jax.vmap(lambda kappa: run(make(kappa), grads))(kappas)
    for i, kappa in enumerate(kappas):
        got = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        assert_same(got, run(make(float(kappa)), grads))
    # Bad values are seen where they are numbers.
    assert state.hyperparams["kappa"] == 0.25


def test_the_dict_may_change_after_the_build():
    factors = {"emb": 2.0}
    tx, grads = ot.scale_by_path(factors), small_tree()
    factors["emb"] = 3.0
    assert_same(run(tx, grads), run(ot.scale_by_path({"emb": 2.0}), grads))


def test_row_sparse_updates_have_their_values_scaled():
    rows = ot.RowSparse(jnp.array([2, 0]), jnp.array([[1.0], [5.0]]), 3)
    tx = ot.scale_by_path({"^emb$": 3.0, "w": 2.0})
    state = tx.init({"emb": jnp.ones((3, 1)), "w": jnp.ones(1)})
    updates, _ = tx.update({"emb": rows, "w": jnp.ones(1)}, state)
    assert updates["emb"].indices.tolist() == [2, 0]
    assert updates["emb"].to_dense().tolist() == [[15.0], [0.0], [3.0]]
    assert updates["w"].tolist() == [2.0]


def test_one_pattern_serves_an_nnx_model():
    model = NnxNet()
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    tx = optax.chain(ot.scale_by_path({r"^layer/bias$": 4.0}), optax.sgd(1.0))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, before))
    moved = jax.tree.map(jnp.subtract, before, nnx.state(model, nnx.Param))
    np.testing.assert_allclose(moved["layer"]["bias"][...], 4, rtol=1e-6)
    np.testing.assert_allclose(moved["layer"]["kernel"][...], 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("factors", "error", "message"),
    [
        ("bias", TypeError, "factors must map patterns to factors, got 'bias'"),
        ({}, ValueError, "factors must hold at least one pattern"),
        ({3: 1.0}, TypeError, "factors must have str keys, got 3"),
        ({"b": -1.0}, ValueError, r"factors\['b'\] must be at least 0 and finite"),
        ({"b": float("nan")}, ValueError, r"factors\['b'\] must be at least 0"),
        ({"b": float("inf")}, ValueError, r"factors\['b'\] must be at least 0"),
        ({"b": "fast"}, TypeError, r"factors\['b'\] must be a number"),
        ({"b": None}, TypeError, r"factors\['b'\] must be a number"),
        ({"b": jnp.ones((2, 1))}, TypeError, r"factors\['b'\] must be a number, a"),
        ({"(": 1.0}, ValueError, r"pattern '\(' is not a regular expression"),
    ],
    ids=str,
)
def test_bad_arguments(factors, error, message):
    with pytest.raises(error, match=message):
        ot.scale_by_path(factors)


def test_a_pattern_that_matches_nothing_is_an_error_that_lists_the_paths():
    tx = ot.scale_by_path({"emb": 2.0, "bais$": 0.5})
    with pytest.raises(ValueError, match=r"match no leaf: 'bais\$'.*'emb', 'layer/b'"):
        tx.init(small_tree())


def test_a_masked_leaf_shows_that_its_pattern_is_no_misprint():
    grads = {"a": jnp.ones(2), "b": optax.MaskedNode()}
    assert run(ot.scale_by_path({"b": 3.0}), grads)["a"].tolist() == [1.0, 1.0]


def test_a_schedule_must_give_a_number():
    for wrong in (None, "x", True, 1j):
        tx = ot.scale_by_path({"emb": lambda step, wrong=wrong: wrong})
        message = r"factors\['emb'\] must give a number or a vector at each step"
        with pytest.raises(ValueError, match=message):
            run(tx, small_tree())


# The toy of two speeds: loss (phi theta - theta)**2 / 2, predictor phi, encoder theta.
START = {"encoder": 0.1, "predictor": 0.6}


def toy_loss(params, *, stop):
    target = params["encoder"]
    if stop:
        target = jax.lax.stop_gradient(target)
    return (params["predictor"] * params["encoder"] - target) ** 2 / 2


@pytest.fixture
def double():
    """Thousands of small steps add up to more rounding than the vectors have digits."""
    with jax.enable_x64(True):
        yield


def walk(kappa, *, stop, rate, steps):
    """The parameters after each step of SGD, the predictor `kappa` times as fast."""
    tx = optax.chain(ot.scale_by_path({"^predictor$": kappa}), optax.sgd(rate))
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), START)

    def step(carry, _):
        params, state = carry
        grads = jax.grad(toy_loss)(params, stop=stop)
        updates, state = tx.update(grads, state, params)
        params = applied(params, updates)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]


@pytest.mark.usefixtures("double")
def test_the_toy_takes_the_first_steps_of_eulers_method():
    path = walk(1.0, stop=True, rate=0.1, steps=3)
    np.testing.assert_allclose(
        path["predictor"], [0.6004, 0.60081901, 0.60125791], 1e-6
    )
    np.testing.assert_allclose(path["encoder"], [0.1024, 0.10485678, 0.10737162], 1e-6)


@pytest.mark.usefixtures("double")
def test_with_stop_gradient_the_toy_ends_where_the_conserved_quantity_says():
    # theta**2 - phi**2 / kappa is conserved, and phi goes to 1.
    kappas = jnp.asarray([1.0, 4.0, 16.0])
    march = lambda rate, steps: jax.jit(
        jax.vmap(lambda kappa: walk(kappa, stop=True, rate=rate, steps=steps))
    )(kappas)
    ends = march(0.01, 6000)
    exact = np.sqrt(0.01 + 0.64 / np.asarray(kappas))
    np.testing.assert_allclose(exact, [0.806226, 0.412311, 0.223607], atol=5e-7)
    np.testing.assert_allclose(ends["predictor"][:, -1], 1, atol=1e-5)
    np.testing.assert_allclose(ends["encoder"][:, -1], exact, rtol=1e-3)
    assert float(ends["encoder"][0, -1]) == pytest.approx(0.80640, abs=5e-6)
    # Euler's error is of the first order.
    rough = march(0.1, 600)
    assert float(rough["encoder"][0, -1]) == pytest.approx(0.80797, abs=5e-6)
    ratio = (rough["encoder"][:, -1] - exact) / (ends["encoder"][:, -1] - exact)
    np.testing.assert_allclose(ratio, 10, rtol=0.1)


@pytest.mark.usefixtures("double")
def test_without_stop_gradient_the_toy_collapses_unless_the_predictor_is_fast():
    # theta**2 - (1 - phi)**2 / kappa is conserved; at kappa = 16 it is 0.
    kappas = jnp.asarray([1.0, 4.0, 12.0, 20.0, 32.0])
    march = lambda kappa: walk(kappa, stop=False, rate=0.02, steps=40_000)
    ends = jax.jit(jax.vmap(march))(kappas)
    left = np.asarray(0.01 - 0.16 / np.asarray(kappas))
    theta = np.sqrt(np.maximum(left, 0))
    phi = 1 - np.sqrt(np.maximum(-left * np.asarray(kappas), 0))
    assert phi[0] == pytest.approx(0.612702, abs=5e-7)
    assert theta[-1] == pytest.approx(0.070711, abs=5e-7)
    assert (theta == 0).tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(ends["encoder"][:, -1], theta, rtol=0.02, atol=1e-6)
    np.testing.assert_allclose(ends["predictor"][:, -1], phi, rtol=0.01)


@pytest.mark.usefixtures("double")
def test_two_timescale_walks_the_same_path():
    rate, kappa = 0.1, 4.0
    tx = ot.two_timescale(
        optax.identity(), rate, fast="^predictor", fast_learning_rate=kappa * rate
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), START)
    state, path = tx.init(params), walk(kappa, stop=True, rate=rate, steps=50)
    for _ in range(50):
        updates, state = tx.update(jax.grad(toy_loss)(params, stop=True), state, params)
        params = applied(params, updates)
    last = jax.tree.map(lambda leaf: leaf[-1], path)
    assert_same(params, last, ulps=8)


def test_gradients_of_other_trees_keep_their_layout():
    params = small_tree()
    tx = ot.scale_by_path({"emb": 2.0})
    got, _ = tx.update(gradients(params), tx.init(params))
    assert_same(got["emb"], 2 * values((16, 8), jnp.float32, 1))
