"""Tiger's kernel: the sign of momentum, with accumulation inside it."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks
from tests.problems import assert_same, temp_bytes_of_step, values, version

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)


def run(tx, grads):
    """Updates and states of a sequence of gradients."""
    states, out = [tx.init(grads[0])], []
    for grad in grads:
        update, state = tx.update(grad, states[-1])
        out.append(update)
        states.append(state)
    return out, states


def draws(steps, shape=(7, 5)):
    """Gradients of both signs."""
    return list(values((steps, *shape), jnp.float32, seed=4))


def test_vector_t6_plain():
    grads = [jnp.asarray(g, jnp.float32) for g in (1.0, -0.05, -2.0, 0.0)]
    out, states = run(ot.scale_by_tiger(0.9), grads)
    mu = [float(state.mu) for state in states[1:]]
    np.testing.assert_allclose(mu, [0.1, 0.085, -0.1235, -0.11115], rtol=1e-6)
    assert [float(u) for u in out] == [1.0, 1.0, -1.0, -1.0]


def test_the_moving_average_is_optax_ema():
    grads = draws(6)
    out, states = run(ot.scale_by_tiger(0.9), grads)
    average: Any = optax.ema(0.9, debias=False)
    state = average.init(grads[0])
    for grad, u, after in zip(grads, out, states[1:], strict=True):
        mean, state = average.update(grad, state)
        np.testing.assert_allclose(after.mu, mean, rtol=1e-6, atol=1e-7)
        assert_same(u, jnp.sign(mean))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_window_equals_one_step_on_its_mean(k):
    grads = draws(4 * k)
    out, states = run(ot.scale_by_tiger(accumulate_steps=k), grads)
    means = [sum(grads[i : i + k]) / k for i in range(0, len(grads), k)]
    want, wanted_states = run(ot.scale_by_tiger(), means)
    assert not any(u.any() for i, u in enumerate(out) if (i + 1) % k)
    for i, (u, state) in enumerate(zip(want, wanted_states[1:], strict=True)):
        mu = states[(i + 1) * k].mu
        np.testing.assert_allclose(mu, state.mu, rtol=1e-5, atol=1e-7)
        assert_same(out[(i + 1) * k - 1], u)


def test_state_is_one_array_a_parameter():
    params = {"w": jnp.ones((3, 4)), "b": jnp.ones(4)}
    sizes = [x.size for x in jax.tree.leaves(ot.scale_by_tiger().init(params))]
    assert sum(sizes) == 16
    window = ot.scale_by_tiger(accumulate_steps=8).init(params)
    assert sum(x.size for x in jax.tree.leaves(window)) == 17


def test_exponents_follow_the_window():
    schedule = lambda window: jnp.where(window == 0, 1.0, 0.0)
    tx = ot.scale_by_tiger(0.5, accumulate_steps=2, exponent=schedule)
    out, states = run(tx, [jnp.full(1, 8.0)] * 4)
    assert [float(u[0]) for u in out] == [0.0, 4.0, 0.0, 1.0]
    assert (int(states[-1].step), int(states[-1].call)) == (2, 0)


def test_the_state_counts_only_what_it_needs():
    schedule = lambda window: 0.5
    counted = lambda **options: [
        x is not None for x in ot.scale_by_tiger(**options).init(jnp.ones(2))[1:]
    ]
    assert counted() == [False, False]
    assert counted(accumulate_steps=2) == [True, False]
    assert counted(exponent=schedule) == [False, True]
    assert counted(accumulate_steps=2, exponent=schedule) == [True, True]


def test_the_relaxed_sign_of_vector_t11():
    tx = ot.scale_by_tiger(0.5, exponent=0.5)
    out, _ = run(tx, [2 * jnp.asarray([-4.0, 0.0, 0.25])])
    np.testing.assert_allclose(out[0], [-2.0, 0.0, 0.5], rtol=1e-6)


def test_a_dead_zone_lets_a_fading_momentum_rest():
    tx = ot.scale_by_tiger(0.5, dead_zone=0.2)
    out, _ = run(tx, [jnp.ones(1), jnp.zeros(1), jnp.zeros(1)])
    assert [float(u[0]) for u in out] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_leaf_that_is_not_finite_skips_the_step_alone(bad):
    tx = ot.scale_by_tiger(0.5)
    start = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([3.0])}
    _, state = tx.update(start, tx.init(start))
    grads = {"a": jnp.asarray([bad, 1.0]), "b": jnp.asarray([-9.0])}
    updates, after = tx.update(grads, state)
    assert_same(after.mu["a"], state.mu["a"])
    assert updates["a"].tolist() == [0.0, 0.0]
    assert updates["b"].tolist() == [-1.0] and float(after.mu["b"][0]) == -3.75


def test_the_decay_of_a_window_goes_with_its_first_step():
    tx = ot.scale_by_tiger(0.5, accumulate_steps=2)
    grads = [jnp.ones(1), jnp.ones(1), jnp.full(1, jnp.nan), jnp.ones(1)]
    _, states = run(tx, grads)
    # 1/2 after the first window; then no decay, and half the window's share.
    assert [float(state.mu[0]) for state in states] == [0.0, 0.25, 0.5, 0.5, 0.75]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_windows_go_on_when_their_number_cannot(k):
    schedule = lambda window: jnp.where(window > 2**20, 1.0, 0.0)
    tx = ot.scale_by_tiger(0.5, accumulate_steps=k, exponent=schedule)
    state = tx.init(jnp.ones(1))
    state = ot.TigerState(mu=state.mu, call=state.call, step=jnp.int32(2**31 - 2))
    acted, numbers = [], []
    for _ in range(2 * k + 1):
        numbers.append(int(state.step))
        updates, state = tx.update(jnp.ones(1), state)
        acted.append(bool(updates.any()))
    assert acted == [i % k == k - 1 for i in range(2 * k + 1)]
    assert numbers == [2**31 - 2] * k + [2**31 - 1] * (k + 1)


def test_without_the_test_nan_stays():
    tx = ot.scale_by_tiger(0.5, skip_nonfinite=False)
    out, states = run(tx, [jnp.asarray([jnp.nan, 1.0]), jnp.ones(2)])
    assert np.isnan(out[1][0]) and out[1][1] == 1.0
    assert np.isnan(states[-1].mu[0])


@pytest.mark.skipif(version(jax) < (0, 10), reason="its XLA fuses less on CPU")
def test_a_compiled_step_needs_no_temporary_of_the_parameters_size():
    params = {"w": jnp.ones((512, 512)), "b": jnp.ones(1024)}
    for options in {}, {"accumulate_steps": 4}, {"mu_dtype": jnp.bfloat16}:
        tx = ot.tiger(1e-3, embeddings="w", shrink_to_one="b", **options)
        # A number for each row of the table, and little more.
        assert temp_bytes_of_step(tx, params, params) < 16_384


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 0.0}, ValueError, r"beta must lie in \(0, 1\), got 0.0"),
        ({"beta": 1.0}, ValueError, "beta must lie"),
        ({"accumulate_steps": 0}, ValueError, "accumulate_steps must be at least 1"),
        ({"accumulate_steps": 2.0}, TypeError, "accumulate_steps must be an int"),
        ({"exponent": 2.0}, ValueError, r"exponent must lie in \[0, 1\]"),
        ({"dead_zone": -1.0}, ValueError, "dead_zone must be at least 0"),
        ({"mu_dtype": jnp.int32}, ValueError, "mu_dtype must be a floating dtype"),
    ],
    ids=str,
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ot.scale_by_tiger(**options)
    with pytest.raises(error, match=message):
        ot.tiger(1e-3, **options)


def test_the_flag_is_a_flag():
    with pytest.raises(TypeError, match="skip_nonfinite must be True or False"):
        ot.scale_by_tiger(skip_nonfinite=None)
