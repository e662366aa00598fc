"""Moving averages of parameters against their equations, and every option."""

import itertools
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
    values,
)

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

STEPS = 6


def averaged(path, decays, *, debias=False, every=1):
    """The average after each call, in float64: begun at the first parameters, or at
    zero and divided by the sum of its weights. There is a decay for each average."""
    raw = np.zeros_like(path[0]) if debias else path[0]
    shown, product, out = path[0], 1.0, []
    for t, theta in enumerate(path[1:], start=1):
        if t % every == 0:
            decay = decays[t // every - 1]
            raw = decay * raw + (1 - decay) * theta
            product *= decay
            if debias and product < 1:
                shown = raw / (1 - product)
            elif not debias:
                shown = raw
        out.append(shown)
    return out


def walk(tx, dtype=jnp.float32, steps=STEPS, shape=(3, 4)):
    """Parameters from the start on, and the average after each step, of a walk."""
    params = values(shape, dtype, 100)
    state, path, averages = tx.init(params), [params], []
    for seed in range(steps):
        updates, state = tx.update(values(shape, dtype, seed), state, params)
        params = applied(params, updates)
        path.append(params)
        averages.append(state.ema)
    return [np.asarray(x).astype(float) for x in path], averages, state


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.9999, 1.0, "schedule"])
def test_equals_the_equations(decay, debias, every):
    rates = [0.9, 0.0, 0.5, 1.0, 0.99, 0.25]
    schedule = lambda step: jnp.asarray(rates, jnp.float32)[step]
    every = None if every == 1 else every
    options = {"debias": debias, "every": every}
    tx = ot.ema_params(schedule if decay == "schedule" else decay, **options)
    path, averages, _ = walk(tx)
    decays = rates if decay == "schedule" else [decay] * STEPS
    want = averaged(path, decays, debias=debias, every=every or 1)
    np.testing.assert_allclose(np.stack(averages), want, rtol=2e-6, atol=2e-6)


def test_a_short_average_without_bias_is_the_mean_of_its_parameters():
    path, averages, _ = walk(ot.ema_params(0.999999, debias=True))
    np.testing.assert_array_equal(averages[0], path[1])  # to the bit
    for t, average in enumerate(averages, start=1):
        np.testing.assert_allclose(average, np.mean(path[1 : t + 1], 0), atol=1e-5)


@pytest.mark.parametrize("decay", [0.999, 0.9999, 0.99999, 0.999999])
def test_the_weights_are_summed_up_without_loss(decay):
    """Added up in float32, they would stand still at 1 - 2**-25 / (1 - decay)."""
    tx, one = ot.ema_params(decay, debias=True), jnp.ones(())
    step = lambda state, _: (tx.update(one, state, one)[1], sum(state.weight))
    _, sums = jax.lax.scan(step, tx.init(one), length=300_000)
    share = np.float64(np.float32(1 - decay))
    want = -np.expm1(np.arange(300_000) * np.log1p(-share))
    np.testing.assert_allclose(sums, want, rtol=2e-7)


def test_before_the_first_average_the_parameters_are_read():
    params = small_tree()
    for options in {}, {"debias": True}, {"every": 3, "debias": True}:
        state = ot.ema_params(0.9, **options).init(params)
        assert_same(state.ema, params)
    still = ot.ema_params(0.9, every=3, debias=True)
    path, averages, _ = walk(still, steps=3)
    np.testing.assert_array_equal(averages[1], path[0])
    np.testing.assert_array_equal(averages[2], path[3])


@pytest.mark.parametrize("debias", [False, True])
def test_a_decay_of_zero_copies_and_one_keeps_to_the_bit(debias):
    path, averages, _ = walk(ot.ema_params(0.0, debias=debias))
    np.testing.assert_array_equal(np.stack(averages), np.stack(path[1:]))
    path, averages, _ = walk(ot.ema_params(1.0, debias=debias))
    np.testing.assert_array_equal(averages[-1], path[0])
    # Whatever stands in what counts for nothing.
    nan, one = jnp.full(2, jnp.nan), jnp.ones(2)
    for start, update, decay, want in [(nan, -nan, 0.0, nan), (one, nan, 1.0, one)]:
        tx = ot.ema_params(decay, debias=debias)
        _, state = tx.update(update, tx.init(start), start)
        np.testing.assert_array_equal(state.ema, want)
    tx = ot.ema_params(0.0, debias=debias)
    state = tx.init(nan)
    _, state = tx.update(jnp.zeros(2), state, one)
    np.testing.assert_array_equal(state.ema, one)


def test_a_resting_parameter_is_reached_exactly():
    # With weights d and 1 - d, rounded apart, it would settle beside it.
    tx = ot.ema_params(0.9999)
    rest = values((50,), jnp.float32, 1)
    state, zero = tx.init(rest + 0.25), jnp.zeros(50)
    step = lambda state, _: (tx.update(zero, state, rest)[1], None)
    tight, _ = jax.lax.scan(step, tx.init(rest), length=1000)
    assert_same(tight.ema, rest)
    state, _ = jax.lax.scan(step, state, length=150_000)
    np.testing.assert_allclose(state.ema, rest, atol=1e-3)


def test_the_state_holds_only_what_the_options_need():
    params = small_tree()
    held = lambda *arguments, **options: [
        name
        for name, value in ot.ema_params(*arguments, **options)
        .init(params)
        ._asdict()
        .items()
        if value is not None
    ]
    assert held(0.9) == held(0.9, every=1) == held(0.9, every=None) == ["ema"]
    assert held(0.9, every=2) == ["ema", "call"]
    assert held(lambda step: 0.9) == ["ema", "step"]
    assert held(lambda step: 0.9, every=2) == ["ema", "step", "call"]
    assert held(0.9, debias=True) == ["ema", "weight"]
    weight = ot.ema_params(0.9, debias=True).init(params).weight
    assert layout(weight) == layout((jnp.zeros(()), jnp.zeros(())))


def test_a_schedule_counts_averages():
    seen = []

    def decay(step):
        seen.append(int(step))
        return 0.5

    walk(ot.ema_params(decay, every=2), steps=5)
    assert seen == [0, 0, 1, 1, 2]


def _over_windows(decay, every, windows, *, dtype=jnp.float32, debias=False, how="jit"):
    """The state after windows of calls, of which the last alone moves parameters."""
    options = {"every": every, "debias": debias}
    tx: Any = optax.chain(optax.scale(-1.0), ot.ema_params(decay, **options))
    last = every or 1

    def call(carry, index):
        params, state = carry
        window = index // last
        pushed = jnp.sin(1 + window + jnp.arange(5)).astype(dtype)
        still = jnp.zeros_like(pushed)
        grads = jnp.where((index + 1) % last == 0, pushed, still)
        updates, state = tx.update(grads, state, params)
        return (applied(params, updates), state), None

    params = values((5,), dtype, 0)
    carry, indices = (params, tx.init(params)), np.arange(windows * last)
    if how == "scan":
        carry, _ = jax.lax.scan(call, carry, indices)
    else:
        step = jax.jit(call) if how == "jit" else call
        for index in indices:
            carry, _ = step(carry, jnp.asarray(index))
    return carry[1][1]


@pytest.mark.parametrize("how", ["eager", "jit", "scan"])
@pytest.mark.parametrize("debias", [False, True])
def test_a_window_of_calls_is_one_step(how, debias):
    """BYOL's schedule over ten optimizer steps: by calls, it would be over too soon."""
    decay = ot.cosine_ema_decay(0.9, 10)
    once = _over_windows(decay, None, 10, debias=debias, how=how)
    each = _over_windows(decay, 4, 10, debias=debias, how=how)
    # Compiled as a whole, a loop may round another way than a step alone.
    assert_same(each.ema, once.ema, ulps=4)
    assert (int(each.step), int(each.call)) == (10, 0)
    assert_same(each.weight, once.weight, ulps=4)


def test_windows_go_on_where_the_count_of_averages_ends():
    full = jnp.asarray(2**31 - 1, jnp.int32)
    decay = lambda step: jnp.where(step == 2**31 - 1, 0.0, 1.0)
    tx, one = ot.ema_params(decay, every=2), jnp.ones(2)
    state = tx.init(jnp.zeros(2))._replace(step=full)
    for call, average in [(1, 0), (0, 1), (1, 1), (0, 1)]:
        _, state = tx.update(one, state, jnp.zeros(2))
        assert (int(state.step), int(state.call)) == (2**31 - 1, call)
        assert state.ema.tolist() == [average] * 2
    longest = ot.ema_params(0.0, every=2**31 - 1)
    state = longest.init(jnp.zeros(2))._replace(call=jnp.asarray(2**31 - 2, jnp.int32))
    _, state = longest.update(one, state, jnp.zeros(2))
    assert (int(state.call), state.ema.tolist()) == (0, [1, 1])


def test_hyperparameters_are_injected_with_the_defaults():
    for options in {}, {"every": 3, "dtype": jnp.float32, "debias": True}:
        static = tuple({"every", "dtype"} & set(options))
        inject = optax.inject_hyperparams(ot.ema_params, static_args=static)
        path, averages, _ = walk(ot.ema_params(0.5, **options))
        tx, params = inject(0.5, **options), jnp.asarray(path[0], jnp.float32)
        state = tx.init(params)
        for before, after in itertools.pairwise(path):
            before = jnp.asarray(before, jnp.float32)
            with jax.numpy_dtype_promotion("standard"):
                _, state = tx.update(after - before, state, before)
        got = optax.tree.get(state, "ema")
        np.testing.assert_allclose(got, averages[-1], rtol=1e-5, atol=1e-6)


def test_structural_arguments_under_injection_name_the_remedy():
    inject = optax.inject_hyperparams(ot.ema_params)
    for name, value in [("every", 2), ("dtype", jnp.float32)]:
        with pytest.raises(TypeError, match=rf'static_args=\("{name}",\)'):
            inject(0.9, **{name: value}).init(jnp.ones(2))


def test_injected_into_bfloat16_a_decay_wants_a_dtype():
    """Optax casts hyperparameters to the parameters' dtype, in which 0.999 is 1."""
    params = jnp.ones(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        with pytest.raises(ValueError, match=r"hyperparam_dtype=jnp\.float32"):
            optax.inject_hyperparams(ot.ema_params)(0.999).init(params)
        inject = optax.inject_hyperparams(ot.ema_params, hyperparam_dtype=jnp.float32)
        tx = inject(0.999)
        _, state = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "ema"), 1.001, rtol=1e-6)


def test_updates_pass_as_they_are():
    params = small_tree()
    grads, tx = gradients(params), ot.ema_params(0.9)
    assert tx.update(grads, tx.init(params), params)[0] is grads


def test_byols_schedule():
    decay = ot.cosine_ema_decay(0.996, 100)
    got = [float(decay(step)) for step in (0, 25, 50, 100, 101, 10_000)]
    np.testing.assert_allclose(got, [0.996, 0.996586, 0.998, 1, 1, 1], atol=5e-7)
    assert got[3] == 1
    steps = np.arange(101)
    want = 1 - 0.004 * 0.5 * (1 + np.cos(np.pi * steps / 100))
    np.testing.assert_allclose(jax.vmap(decay)(jnp.arange(101)), want, atol=1e-7)
    assert layout(jax.jit(decay)(jnp.zeros((), jnp.int32))) == layout(jnp.zeros(()))
    # The first update sees the base, the last the step before the end.
    path, averages, _ = walk(ot.ema_params(ot.cosine_ema_decay(0.5, STEPS)))
    rates = 1 - 0.25 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))
    np.testing.assert_allclose(np.stack(averages), averaged(path, rates), rtol=1e-5)


@pytest.mark.parametrize(
    ("decay", "options", "error", "message"),
    [
        (-0.1, {}, ValueError, r"decay must lie in \[0, 1\], got -0.1"),
        (1.5, {}, ValueError, r"decay must lie in \[0, 1\], got 1.5"),
        (float("nan"), {}, ValueError, r"decay must lie in \[0, 1\]"),
        ("0.9", {}, TypeError, "decay must be a number or a schedule"),
        (jnp.ones(2), {}, TypeError, "decay must be a number or a schedule"),
        (0.9, {"every": 0}, ValueError, "every must be at least 1, got 0"),
        (0.9, {"every": 1.5}, TypeError, "every must be an int, got 1.5"),
        (0.9, {"every": jnp.ones((), int)}, TypeError, "every must be an int, got Arr"),
        (0.9, {"debias": 1}, TypeError, "debias must be True or False"),
        (0.9, {"dtype": jnp.int32}, ValueError, "dtype must be a floating dtype"),
        (0.9, {"dtype": "x"}, TypeError, "dtype must be a dtype or None"),
    ],
    ids=str,
)
def test_bad_arguments(decay, options, error, message):
    with pytest.raises(error, match=message):
        ot.ema_params(decay, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.01, 10), ValueError, r"base must lie in \[0, 1\], got 1.01"),
        ((-0.5, 10), ValueError, r"base must lie in \[0, 1\]"),
        ((lambda step: 0.9, 10), TypeError, "base must be a number"),
        ((0.9, 0), ValueError, "total_steps must be at least 1"),
        ((0.9, 10.0), TypeError, "total_steps must be an int"),
    ],
)
def test_bad_arguments_of_the_schedule(arguments, error, message):
    with pytest.raises(error, match=message):
        ot.cosine_ema_decay(*arguments)


def test_bad_input_later():
    tx, one = ot.ema_params(0.9), jnp.ones(2)
    with pytest.raises(ValueError, match="ema_params needs params in update"):
        tx.update(one, tx.init(one))
    with pytest.raises(ValueError, match=r"params: missing \(none\); unknown 'b'"):
        tx.update({"a": one, "b": one}, tx.init({"a": one}), {"a": one})
    with pytest.raises(TypeError, match="leaf at 'name' is a str"):
        tx.init({"w": one, "name": "x"})
    bad = ot.ema_params(lambda step: jnp.ones(2))
    with pytest.raises(ValueError, match="decay must give a scalar"):
        bad.update(one, bad.init(one), one)
