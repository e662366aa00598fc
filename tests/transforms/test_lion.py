"""Lion against its equations, against Optax, and in memory."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks
from tests.problems import (
    applied,
    assert_same,
    gradients,
    layout,
    small_tree,
    temp_bytes_of_step,
    values,
)

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

# Vector T6: parameter after each step, and the momentum.
T6_GRADS = (1.0, -0.05, -2.0, 0.0)
T6_MU = (0.01, 0.0094, -0.010694, -0.01058706)
T6_THETA = (0.89, 0.7811, 0.873289, 0.96455611)


def reference(grads, *, b1=0.9, b2=0.99, exponent=0.0, dead_zone=0.0, cautious=False):
    """Lion as the paper writes it, one entry at a time, in Python floats."""
    m, out = 0.0, []
    for g in grads:
        c = b1 * m + (1 - b1) * g
        u = 0.0 if abs(c) <= dead_zone else np.sign(c) * abs(c) ** exponent
        out.append(u if not cautious or u * g > 0 else 0.0)
        m = b2 * m + (1 - b2) * g
    return out


def run(tx, grads, params=None):
    """Updates of a sequence of gradients, and the last state."""
    state, out = tx.init(grads[0] if params is None else params), []
    for grad in grads:
        update, state = tx.update(grad, state, params)
        out.append(update)
    return out, state


def test_vector_t6():
    tx = ot.lion(0.1, weight_decay=0.1)
    theta, state = jnp.ones(()), tx.init(jnp.ones(()))
    for grad, mu, want in zip(T6_GRADS, T6_MU, T6_THETA, strict=True):
        updates, state = tx.update(jnp.asarray(grad, jnp.float32), state, theta)
        theta = applied(theta, updates)
        assert float(state[0].mu) == pytest.approx(mu, rel=1e-5)
        assert float(theta) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"b1": 0.95, "b2": 0.98},
        {"b1": 0.99, "b2": 0.9},
        {"b2": 0.2},
        {"exponent": 0.5},
        {"exponent": 1.0},
        {"dead_zone": 0.05},
        {"cautious": True},
        {"exponent": 0.25, "dead_zone": 0.02, "cautious": True},
    ],
    ids=str,
)
def test_equals_the_equations_entry_by_entry(options):
    grads = np.array(values((30, 40), jnp.float32, seed=2))
    grads[:, :5] = 0.0  # never a gradient
    grads[10:, 5:10] = 0.0  # none any more
    got, _ = run(ot.scale_by_lion(**options), list(jnp.asarray(grads)))
    columns = [reference(column, **options) for column in grads.astype(float).T]
    np.testing.assert_allclose(np.stack(got), np.array(columns).T, rtol=2e-5, atol=1e-7)


def test_walks_the_path_of_optax():
    params = small_tree()
    ours = ot.lion(0.01, weight_decay=0.1)
    theirs: Any = optax.lion(0.01, weight_decay=0.1)
    mine = yours = params
    state, other = ours.init(params), theirs.init(params)
    for seed in range(20):
        updates, state = ours.update(gradients(params, seed), state, mine)
        mine = applied(mine, updates)
        with jax.numpy_dtype_promotion("standard"):
            updates, other = theirs.update(gradients(params, seed), other, yours)
        yours = applied(yours, updates)
    assert_same(mine, yours, ulps=16)
    assert_same(state[0].mu, other[0].mu, ulps=16)


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.9, 0.9), (0.95, 0.9)])
def test_an_infinite_gradient_has_a_sign(betas):
    grads = jnp.asarray([jnp.inf, -jnp.inf, 1.0])
    (first, second), _ = run(ot.scale_by_lion(*betas), [grads, jnp.ones(3)])
    assert first.tolist() == second.tolist() == [1.0, -1.0, 1.0]


def test_an_unknown_past_or_present_leaves_the_sign_exact():
    tiny = float(jnp.finfo(jnp.float32).tiny)
    sizes = jnp.asarray([1e30, 1.0, 1e-20, 1e4 * tiny], jnp.float32)
    grads = jnp.concatenate([sizes, -sizes])
    (first, second), _ = run(ot.scale_by_lion(), [grads, jnp.zeros_like(grads)])
    assert_same(first, jnp.sign(grads))
    assert_same(second, jnp.sign(grads))


def test_a_narrow_momentum_decides_as_it_is_kept():
    # c / b2 = 0.9 m' + 0.09 g, and m' is what the state holds: here the gradient all
    # but cancels a momentum of 0.01.
    tx = ot.scale_by_lion(mu_dtype=jnp.bfloat16)
    grads = jnp.asarray(np.linspace(-0.0925, -0.0875, 101), jnp.float32)
    state = tx.init(grads)._replace(mu=jnp.full(101, 0.01, jnp.bfloat16))
    got, after = tx.update(grads, state)
    kept = np.asarray(after.mu).astype(float)
    want = 0.9 * kept + 0.09 * np.asarray(grads).astype(float)
    clear = np.abs(want) > 1e-8
    assert clear.mean() > 0.9 and {-1.0, 1.0} <= set(np.sign(want))
    np.testing.assert_array_equal(np.asarray(got)[clear], np.sign(want)[clear])
    # Further off the rounding decides nothing: half an ulp of 0.01 is 3e-5.
    unrounded = 0.9 * 0.01 + 0.1 * np.asarray(grads).astype(float)
    far = np.abs(unrounded) > 6e-5
    assert far.mean() > 0.5
    np.testing.assert_array_equal(np.asarray(got)[far], np.sign(unrounded)[far])


def test_the_relaxed_sign_of_vector_t11():
    state = ot.scale_by_lion(0.5, 0.5).init(jnp.zeros(3))
    tx = ot.scale_by_lion(0.5, 0.5, exponent=0.5)
    got, _ = tx.update(2 * jnp.asarray([-4.0, 0.0, 0.25]), state)
    np.testing.assert_allclose(got, [-2.0, 0.0, 0.5], rtol=1e-6)


def test_an_exponent_of_one_is_momentum():
    grads = list(values((5, 7), jnp.float32, 3))
    got, _ = run(ot.scale_by_lion(0.9, 0.9, exponent=1.0), grads)
    want, _ = run(optax.ema(0.9, debias=False), grads)
    np.testing.assert_allclose(np.stack(got), np.stack(want), rtol=1e-5)


def test_a_schedule_of_the_exponent_starts_at_step_zero():
    grads = [jnp.full(1, 4.0)] * 3
    schedule = lambda step: jnp.where(step == 0, 1.0, 0.0)
    got, state = run(ot.scale_by_lion(0.5, 0.5, exponent=schedule), grads)
    assert [float(u[0]) for u in got] == [2.0, 1.0, 1.0]
    assert int(state.step) == 3
    assert ot.scale_by_lion().init(grads[0]).step is None


def test_nan_stays_where_it_is():
    grads = jnp.asarray([jnp.nan, 1.0, jnp.inf])
    for options in {}, {"dead_zone": 0.1}, {"exponent": 0.5}:
        got, state = ot.scale_by_lion(**options).update(
            grads, ot.scale_by_lion(**options).init(grads)
        )
        assert np.isnan(got[0]) and np.isfinite(got[1])
        assert np.isnan(state.mu[0]) and np.isfinite(state.mu[1])


def test_cautious_leaves_a_row_without_gradient_alone():
    tx = ot.scale_by_lion(cautious=True)
    (_, second), _ = run(tx, [jnp.ones((2, 3)), jnp.zeros((2, 3))])
    assert not second.any()


def test_a_compiled_step_needs_no_temporary_of_the_parameters_size():
    params = {"w": jnp.ones((512, 512)), "b": jnp.ones(1024)}
    tx = ot.lion(1e-3, weight_decay=0.1)
    assert temp_bytes_of_step(tx, params, params) < 4096


def test_derivatives_pass_through_a_power():
    tx = ot.scale_by_lion(0.5, 0.5, exponent=1.0)
    loss = lambda g: tx.update(g, tx.init(g))[0].sum()
    np.testing.assert_allclose(jax.grad(loss)(jnp.ones(3)), [0.5] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"b1": 0.0}, ValueError, r"b1 must lie in \(0, 1\), got 0.0"),
        ({"b2": 1.0}, ValueError, r"b2 must lie in \(0, 1\)"),
        ({"b2": -0.5}, ValueError, "b2 must lie"),
        ({"b1": float("nan")}, ValueError, "b1 must lie"),
        ({"b1": "x"}, TypeError, "b1 must be a number"),
        ({"exponent": 1.5}, ValueError, r"exponent must lie in \[0, 1\]"),
        ({"exponent": -0.1}, ValueError, "exponent must lie"),
        ({"dead_zone": -1.0}, ValueError, "dead_zone must be at least 0"),
        ({"dead_zone": float("inf")}, ValueError, "dead_zone must be at least 0"),
        ({"cautious": 1}, TypeError, "cautious must be True or False"),
        ({"mu_dtype": jnp.int32}, ValueError, "mu_dtype must be a floating dtype"),
        ({"mu_dtype": "x"}, TypeError, "mu_dtype must be a dtype or None"),
    ],
    ids=str,
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ot.scale_by_lion(**options)
    with pytest.raises(error, match=message):
        ot.lion(1e-3, **options)


def test_a_schedule_must_give_a_scalar():
    tx = ot.scale_by_lion(exponent=lambda step: jnp.zeros(2))
    with pytest.raises(ValueError, match="exponent must give a scalar"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_updates_of_another_tree_are_an_error():
    tx = ot.scale_by_lion()
    with pytest.raises(ValueError, match=r"the state: missing \(none\); unknown 'b'"):
        tx.update({"a": jnp.ones(2), "b": jnp.ones(2)}, tx.init({"a": jnp.ones(2)}))


BAD = {"a": jnp.asarray([1.0, jnp.nan]), "b": jnp.asarray([[1.0, -2.0]])}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_leaf_that_is_not_finite_rests(bad, dtype):
    at = {"a": jnp.asarray([2.0, -4.0], dtype), "b": jnp.ones((1, 2), dtype)}
    grads = jax.tree.map(lambda x: x.astype(dtype), BAD)
    grads["a"] = grads["a"].at[1].set(bad)
    for make in (
        lambda skip: ot.scale_by_lion(skip_nonfinite=skip),
        lambda skip: ot.lion(0.1, weight_decay=0.5, skip_nonfinite=skip),
    ):
        tx, plain = make(True), make(False)
        _, state = tx.update(at, tx.init(at), at)
        updates, after = jax.jit(tx.update)(grads, state, at)
        want, others = jax.jit(plain.update)(grads, state, at)
        mu = lambda state: optax.tree.get(state, "mu")
        assert_same(mu(after)["a"], mu(state)["a"])
        assert not updates["a"].any()
        assert_same(updates["b"], want["b"])
        assert_same(mu(after)["b"], mu(others)["b"])


def test_finite_gradients_are_not_skipped():
    at = small_tree()
    grads = [gradients(at, seed) for seed in range(3)]
    tx, plain = ot.lion(0.1, skip_nonfinite=True), ot.lion(0.1)
    state, other = tx.init(at), plain.init(at)
    assert layout(state) == layout(other)
    for grad in grads:
        updates, state = jax.jit(tx.update)(grad, state, at)
        want, other = jax.jit(plain.update)(grad, other, at)
        assert_same((updates, state), (want, other))


def test_the_flag_costs_nothing_when_off():
    at = {"w": jnp.ones((512, 512))}

    def reads(tx):
        step = jax.jit(lambda g, s, p: tx.update(g, s, p), donate_argnums=1)
        compiled: Any = step.lower(at, tx.init(at), at).compile()
        return compiled.cost_analysis()["bytes accessed"]

    assert reads(ot.lion(0.1, skip_nonfinite=False)) == reads(ot.lion(0.1))
    assert reads(ot.lion(0.1)) < reads(ot.lion(0.1, skip_nonfinite=True))
    for skip in False, True:
        assert temp_bytes_of_step(ot.lion(0.1, skip_nonfinite=skip), at, at) < 16_384
