"""Gradient and update dropout: semantics, vectors, laws and errors."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot


@pytest.fixture
def promotion():
    """Optax's own optimizers need JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def len_of(x):
    return len(x)


def run(tx, grads, params=None):
    return tx.update(grads, tx.init(grads), params)[0]


@pytest.mark.parametrize("make", [ot.gradient_dropout, ot.update_dropout])
@pytest.mark.parametrize("granularity", ["element", "row", "leaf"])
@pytest.mark.parametrize("rescale", [True, False])
def test_survivors_are_those_of_dropout_mask(make, granularity, rescale):
    grads = {"w": jnp.linspace(1, 2, 200).reshape(20, 10), "b": jnp.float32(3)}
    tx = make(0.3, key=5, granularity=granularity, rescale=rescale)
    state = tx.init(grads)
    for step in range(3):
        got, state = tx.update(grads, state)
        mask = ot.dropout_mask(grads, 0.3, key=5, step=step, granularity=granularity)
        for name, g in grads.items():
            want = np.asarray(g) * (1 / np.float32(0.3) if rescale else 1)
            np.testing.assert_array_equal(got[name], np.where(mask[name], want, 0))


def test_one_keeps_bits():
    grads = jnp.array([1.0, -0.0, np.nan, np.inf, 1e-40])
    bits = lambda x: np.asarray(x).view(np.uint32)
    for rate in (1, 1.0):
        got = run(ot.gradient_dropout(rate, key=0), grads)
        np.testing.assert_array_equal(bits(got), bits(grads))
    for rate in (lambda step: 1.0, jnp.float32(1)):
        got = run(ot.gradient_dropout(rate, key=0), grads)
        np.testing.assert_array_equal(bits(got)[:4], bits(grads)[:4])


def test_mean_and_variance_under_sgd():
    """Var[gM/p] = s^2 + (1-p)/p (mu^2 + s^2): 5.0 at mu=1, s^2=0.5, p=0.25."""
    n, p = 2**20, 0.25
    g = 1 + math.sqrt(0.5) * np.random.default_rng(0).standard_normal(n, np.float32)
    got = np.asarray(run(ot.gradient_dropout(p, key=0), jnp.asarray(g)), np.float64)
    fourth = ((got - got.mean()) ** 4).mean()
    assert abs(got.mean() - g.mean()) < 5 * math.sqrt((1 - p) / p * 1.5 / n)
    assert abs(got.var() - 5.0) < 5 * math.sqrt((fourth - got.var() ** 2) / n)


def test_gaussian_has_the_same_two_moments():
    n, p = 2**20, 0.9
    tx = ot.gradient_dropout(p, key=0, distribution="gaussian")
    got = np.asarray(run(tx, jnp.ones(n)), np.float64)
    spread = math.sqrt((1 - p) / p)
    assert spread == pytest.approx(1 / 3)
    assert abs(got.mean() - 1) < 5 * spread / math.sqrt(n)
    assert abs(got.var() - spread**2) < 5 * spread**2 * math.sqrt(2 / n)
    z = (got - 1) / spread
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((abs(z) > 4).mean() - 6.334e-5) < 5 * math.sqrt(6.334e-5 / n)


def test_gaussian_at_rate_one_is_the_identity():
    grads = jnp.array([1.0, -2.5, 0.0])
    tx = ot.gradient_dropout(lambda step: 1.0, key=0, distribution="gaussian")
    np.testing.assert_array_equal(run(tx, grads), grads)


def test_drift_and_variance_under_adam(promotion):
    """Stationary Adam: mean sqrt(p) mu/sqrt(E2); the variance rises as p falls."""
    n, mu, sigma, b1 = 4096, 1.0, 0.5, 0.9
    second = mu**2 + sigma**2
    for p in (0.1, 0.3, 1.0):
        tx = optax.chain(
            ot.gradient_dropout(p, key=0), optax.scale_by_adam(b1=b1, b2=0.999)
        )

        def step(state, key, tx=tx):
            noise = jax.random.normal(key, (n,))
            return tx.update(mu + sigma * noise, state)[::-1]

        keys = jax.random.split(jax.random.key(1), 3000)
        _, moves = jax.lax.scan(step, tx.init(jnp.zeros(n)), keys)
        last = np.asarray(moves[-1], np.float64)
        variance = (1 - b1) / (1 + b1) * (1 - p * mu**2 / second)
        # v itself still fluctuates by a few percent at b2=0.999 and small p.
        assert last.mean() == pytest.approx(math.sqrt(p / second) * mu, rel=0.03)
        assert last.var() == pytest.approx(variance, rel=0.15)


def test_dropping_before_and_after_adam(promotion):
    """T2: a masked gradient still moves on momentum, a masked update does not."""

    def hf_adamw(grads, masks, p, place):
        theta, m, v, path = 1.0, 0.0, 0.0, []
        for t, (g, keep) in enumerate(zip(grads, masks, strict=True), start=1):
            g = g * keep / p if place == "gradient" else g
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            move = 0.1 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v**0.5 + 1e-6)
            theta -= move * keep / p if place == "update" else move
            path.append(theta)
        return path

    # A key under which a single entry is kept, dropped, kept.
    wanted, p = [True, False, True], 0.25
    for key in range(100):
        leaf = jnp.ones(1)
        masks = [ot.dropout_mask(leaf, p, key=key, step=s)[0].item() for s in range(3)]
        if masks == wanted:
            break
    assert masks == wanted
    grads = (0.5, -0.25, 0.1)
    vectors = {
        "gradient": (0.900001581114, 0.832996815669, 0.769669671837),
        "update": (0.600025296621, 0.600025296621, 0.473934897468),
    }
    # Optax adds epsilon to the corrected root; a small one leaves no difference.
    adam = optax.adam(0.1, eps=1e-12)
    chains = {
        "gradient": optax.chain(ot.gradient_dropout(p, key=key), adam),
        "update": optax.chain(adam, ot.update_dropout(p, key=key)),
    }
    for place, tx in chains.items():
        assert hf_adamw(grads, wanted, p, place) == pytest.approx(vectors[place])
        theta = jnp.ones(1)
        state, path = tx.init(theta), []
        for g in grads:
            updates, state = tx.update(jnp.full(1, g), state, theta)
            theta = optax.apply_updates(theta, updates)
            path.append(np.asarray(theta).item())
        assert path == pytest.approx(vectors[place], abs=5e-5)


def test_update_dropout_masks_decoupled_decay(promotion):
    params = jnp.ones(1000)
    tx = optax.chain(optax.adamw(0.1, weight_decay=0.5), ot.update_dropout(0.5, key=0))
    updates, _ = tx.update(params, tx.init(params), params)
    still = ~np.asarray(ot.dropout_mask(params, 0.5, key=0, step=0))
    assert (np.asarray(updates)[still] == 0).all() and still.sum() > 400


def test_a_schedule_sees_zero_first():
    grads = jnp.ones(64)
    rates = jnp.array([1.0, 0.5, 0.25])
    tx = ot.gradient_dropout(lambda step: rates[step], key=0)
    state = tx.init(grads)
    for step, rate in enumerate([1.0, 0.5, 0.25]):
        got, state = tx.update(grads, state)
        want = ot.dropout_mask(grads, rate, key=0, step=step)
        np.testing.assert_array_equal(got, np.where(want, 1 / np.float32(rate), 0))


@pytest.mark.parametrize("distribution", ["bernoulli", "gaussian"])
def test_a_schedule_out_of_range_does_not_pass_for_a_good_one(distribution):
    grads = jnp.ones(2**16)
    for rate in (-0.1, 1.1, jnp.nan):
        how = {"key": 0, "distribution": distribution}
        got = np.asarray(run(ot.gradient_dropout(lambda s, r=rate: r, **how), grads))
        assert (np.isnan(got) | (got == 0)).all() and np.isnan(got).any() | (rate < 0)


def test_a_schedule_at_zero_lets_nothing_pass():
    """Step 48008 has a word of 0 in this leaf, the one that any positive rate keeps."""
    grads = {"w": jnp.ones(2**16)}
    for rescale in (True, False):
        tx = ot.gradient_dropout(lambda step: 0.0, key=0, rescale=rescale)
        state: Any = tx.init(grads)
        got: Any = tx.update(grads, state._replace(step=jnp.int32(48008)))[0]
        assert not got["w"].any()
    mask = ot.dropout_mask(grads, lambda step: 0.0, key=0, step=48008)
    assert not mask["w"].any()


@pytest.mark.parametrize("given", [None, jnp.ones(2)])
def test_a_schedule_must_give_a_scalar(given):
    tx = ot.gradient_dropout(lambda step: given, key=0)
    with pytest.raises(ValueError, match="keep_rate must give a scalar at each step"):
        run(tx, jnp.ones(3))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_short_floats_are_scaled_in_float32(dtype):
    grads = jnp.linspace(1, 2, 64).astype(dtype)
    got = run(ot.gradient_dropout(0.3, key=0), grads)
    wide = np.asarray(grads, np.float32) * (1 / np.float32(0.3))
    want = np.where(ot.dropout_mask(grads, 0.3, key=0, step=0), wide, 0).astype(dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)


def test_complex_entries_are_dropped_whole():
    grads = jax.lax.complex(jnp.linspace(1, 2, 64), jnp.linspace(2, 3, 64))
    got = np.asarray(run(ot.gradient_dropout(0.5, key=0), grads))
    assert set(np.round(got / np.asarray(grads), 5)) == {0, 2}


def test_dropped_nan_is_zero():
    got = run(ot.gradient_dropout(0.5, key=0), jnp.full(64, jnp.nan))
    kept = np.asarray(ot.dropout_mask(jnp.ones(64), 0.5, key=0, step=0))
    assert (np.asarray(got)[~kept] == 0).all() and np.isnan(got)[kept].all()


def test_second_order_derivatives_see_a_constant():
    """The Jacobian of the update is the diagonal of mask / rate."""
    grads = jnp.linspace(1, 2, 16)
    for distribution in ("bernoulli", "gaussian"):
        tx = ot.gradient_dropout(0.5, key=0, distribution=distribution)
        state = tx.init(grads)
        jacobian = jax.jacobian(lambda g: tx.update(g, state)[0])(grads)  # noqa: B023
        noise = run(tx, jnp.ones(16))
        np.testing.assert_allclose(jacobian, np.diag(noise), rtol=1e-6)


def test_meta_gradient_through_an_inner_step():
    """d/dw of the outer loss after one dropped inner step, against the closed form."""
    w, kept = jnp.linspace(1, 2, 8), ot.dropout_mask(jnp.ones(8), 0.5, key=0, step=0)
    tx = ot.gradient_dropout(0.5, key=0)

    def outer(w):
        inner_grad = jax.grad(lambda v: jnp.sum(v**3) / 3)(w)
        dropped, _ = tx.update(inner_grad, tx.init(w))
        return jnp.sum(w - 0.1 * jnp.asarray(dropped))

    want = 1 - 0.1 * np.asarray(kept) * 2 * (2 * np.asarray(w))
    np.testing.assert_allclose(jax.grad(outer)(w), want, rtol=1e-5)


def test_the_mask_adds_no_array_to_the_compiled_step():
    shapes = {f"w{i}": (64, 256) for i in range(4)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    tx = optax.chain(ot.gradient_dropout(0.3, key=0), optax.sgd(0.1))
    step = lambda p, s: optax.apply_updates(p, tx.update(p, s)[0])
    compiled = jax.jit(step, donate_argnums=0).lower(params, tx.init(params)).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None and analysis.temp_size_in_bytes < 64 * 256


def test_equal_leaves_share_one_traced_rule():
    """The compile-time trap: nothing may differ from leaf to leaf but operands."""
    params = {f"w{i}": jnp.ones((8, 8)) for i in range(20)}
    tx = ot.gradient_dropout(0.3, key=0)
    lowered = jax.jit(tx.update).lower(params, tx.init(params)).as_text()
    assert lowered.count("func.func private @_bernoulli") == 1
    assert lowered.count("call @_bernoulli") == 20


def test_inject_hyperparams_with_the_key_static(promotion):
    make = optax.inject_hyperparams(ot.gradient_dropout, static_args=("key",))
    grads = jnp.ones(64)
    tx = make(0.5, key=3)
    state: Any = tx.init(grads)
    assert state.hyperparams["keep_rate"] == 0.5
    state.hyperparams["keep_rate"] = jnp.float32(0.25)
    got, _ = tx.update(grads, state)
    np.testing.assert_array_equal(got, run(ot.gradient_dropout(0.25, key=3), grads))


def test_init_copies_the_key():
    key = jax.random.key_data(jax.random.key(0))
    tx = ot.gradient_dropout(0.5, key=key)
    first = tx.init(jnp.ones(8))
    jax.jit(lambda s: jax.tree.map(lambda x: x + x, s), donate_argnums=0)(first)
    tx.init(jnp.ones(8))


@pytest.mark.parametrize("rate", [0, 0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_rates_out_of_range(rate):
    for make in (ot.gradient_dropout, ot.update_dropout):
        with pytest.raises(ValueError, match=r"keep_rate must lie in \(0, 1\]"):
            make(rate, key=0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"granularity": "rows"}, ValueError, "granularity must be one of"),
        ({"distribution": "uniform"}, ValueError, "distribution must be one of"),
        ({"rescale": 1}, TypeError, "rescale must be True or False"),
        ({"key": "seed"}, TypeError, "key must be an int"),
        ({"keep_rate": "0.5"}, TypeError, "keep_rate must be a number or a schedule"),
        ({"keep_rate": jnp.ones(2)}, TypeError, "keep_rate must be a number"),
        ({"keep_rate": True}, TypeError, "keep_rate must be a number"),
        (
            {"rescale": False, "distribution": "gaussian"},
            ValueError,
            "rescale=False needs distribution='bernoulli'",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        good: dict[str, Any] = {"keep_rate": 0.5, "key": 0}
        ot.gradient_dropout(**{**good, **arguments})


def test_bad_trees():
    tx = ot.gradient_dropout(0.5, key=0)
    with pytest.raises(TypeError, match="leaf at 'ids' has dtype int32"):
        tx.init({"w": jnp.ones(2), "ids": jnp.ones(2, jnp.int32)})
    state = tx.init({"w": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="initialised for 2 leaves but got"):
        tx.update({"w": jnp.ones(2)}, state)
    with pytest.raises(TypeError, match="leaf at 'f' is a function; leave it out"):
        tx.init({"w": jnp.ones(2), "f": len_of})
    with pytest.raises(ValueError, match="two leaves share a path: 'a/b'"):
        tx.init({"a/b": jnp.ones(2), "a": {"b": jnp.ones(2)}})
    huge = jax.ShapeDtypeStruct((2**32 + 1,), jnp.float32)
    with pytest.raises(ValueError, match="reshape it"):
        jax.eval_shape(tx.init, huge)
