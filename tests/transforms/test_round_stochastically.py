"""Stochastic rounding against its law, and where it must not act."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.problems import applied, assert_same, temp_bytes, values

pytestmark = pytest.mark.usefixtures("standard_promotion")

NARROW = [jnp.bfloat16, jnp.float16]
each_dtype = pytest.mark.parametrize("dtype", NARROW)
COUNT = 200_000


def _rounded(params: Any, updates: Any, key: int = 0, steps: int = 1) -> Any:
    """The parameters after `apply_updates`, as a user writes it."""
    tx: Any = ot.round_stochastically(key=key)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        given, state = tx.update(updates, state, params)
        return applied(params, given), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def _neighbours(exact: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a dtype next to exact numbers, from below and from above."""
    near = exact.astype(dtype)
    up, down = dtype(np.inf), dtype(-np.inf)
    low = np.where(near.astype(np.float64) > exact, np.nextafter(near, down), near)
    high = np.where(near.astype(np.float64) < exact, np.nextafter(near, up), near)
    return low.astype(np.float64), high.astype(np.float64)


@each_dtype
@pytest.mark.parametrize("step", [1e-7, 1e-3, 0.3, 1.0, 30.0])
def test_every_entry_becomes_a_neighbour_of_the_exact_sum(
    dtype: Any, step: float
) -> None:
    rng = np.random.default_rng(0)
    spread = 40 if dtype == jnp.bfloat16 else 8
    size = 2.0 ** rng.uniform(-spread, spread / 2, COUNT)
    params = jnp.asarray(rng.normal(size=COUNT) * size, jnp.float32).astype(dtype)
    updates = jnp.asarray(rng.normal(size=COUNT) * step, jnp.float32) * params
    updates = updates.astype(jnp.float32)
    got = _rounded(params, updates)
    assert got.dtype == dtype
    exact = np.asarray(params, np.float64) + np.asarray(updates, np.float64)
    low, high = _neighbours(exact, dtype)
    # A parameter that all but vanishes has coarser neighbours.
    whole = np.abs(exact) > 2.0**-12 * np.abs(np.asarray(params, np.float64))
    got = np.asarray(got, np.float64)
    assert whole.mean() > 0.99
    assert (((got == low) | (got == high)) | ~whole).all()
    # Over all entries the errors, in units of the distance, have mean 0.
    gap = np.where(high > low, high - low, 1)
    error = ((got - exact) / gap)[whole]
    assert abs(error.mean()) < 5 * 0.5 / np.sqrt(error.size)


PLACES = {
    "between": lambda a, b: a + 0.3 * (b - a),
    "half way": lambda a, b: (a + b) / 2,
    "a hair above": lambda a, b: a + (b - a) / 1024,
    "a hair below": lambda a, b: b - (b - a) / 1024,
}
NUMBERS = {
    "one": 1.0,
    "below a power of two": 1.984375,
    "negative": -0.75,
    "zero": 0.0,
    "small": 2.0**-14,  # the least normal number of float16
    "large": 30000.0,
}


@each_dtype
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", NUMBERS)
def test_the_mean_is_the_exact_sum(dtype: Any, number: str, place: str) -> None:
    """Over many entries that all round the same sum, within five sigma."""
    if number == "zero" and dtype == jnp.bfloat16:
        return  # next to it are subnormal numbers of float32 too
    a = np.asarray(NUMBERS[number], dtype)
    b = np.nextafter(a, dtype(np.inf))
    low, high = float(a), float(b)
    exact = PLACES[place](low, high)
    for start in (low, high, 2 * low):
        start = float(np.asarray(start, dtype))
        params = jnp.full(COUNT, start, dtype)
        step = np.float32(exact - start)
        if start + float(step) != exact or (step == 0 and start != exact):
            continue  # float32 has no such step
        got = np.asarray(_rounded(params, jnp.full(COUNT, step)), np.float64)
        assert set(got) <= {low, high}
        chance = float(Fraction(exact - low) / Fraction(high - low))
        sigma = np.sqrt(chance * (1 - chance) / COUNT)
        assert abs((got == high).mean() - chance) < 5 * sigma


@each_dtype
def test_steps_below_the_spacing_of_float32_are_taken_too(dtype: Any) -> None:
    """1 + 2**-26 is 1 in float32; a spacing of 2**-7 or 2**-10 has a share of it."""
    params = jnp.ones(2**22, dtype)
    update = 2.0**-26
    spacing = float(jnp.finfo(dtype).eps)
    got = _rounded(params, jnp.full(params.shape, update, jnp.float32))
    moved = int((np.asarray(got, np.float64) == 1 + spacing).sum())
    expected = params.size * update / spacing
    assert abs(moved - expected) < 5 * np.sqrt(expected)
    assert moved > 0


@each_dtype
def test_sums_that_the_dtype_has_are_met_exactly(dtype: Any) -> None:
    params, other = values((1000,), dtype, 0), values((1000,), dtype, 1)
    step = other.astype(jnp.float32) - params.astype(jnp.float32)
    assert_same(_rounded(params, step), other)


@each_dtype
def test_no_update_is_no_step(dtype: Any) -> None:
    tiny = jnp.finfo(dtype).smallest_subnormal
    params = jnp.asarray([1.5, -0.0, 0.0, float(tiny), jnp.inf, jnp.nan], dtype)
    tx: Any = ot.round_stochastically(key=0)
    zeros = jnp.asarray([0.0, -0.0, 0.0, 0.0, 0.0, 0.0], dtype)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert_same(updates, zeros.astype(jnp.float32))


@each_dtype
def test_the_end_of_the_range_is_as_without(dtype: Any) -> None:
    most = float(jnp.finfo(dtype).max)
    params = jnp.full(6, most, dtype)
    steps = jnp.asarray(
        [most * 2.0**-13, -most * 2.0**-13, most, -jnp.inf, jnp.inf, jnp.nan],
        jnp.float32,
    )
    want = applied(params, steps)
    for key in range(5):
        assert_same(_rounded(params, steps, key), want)


def test_halves_of_the_range_do_not_overflow() -> None:
    most = float(jnp.finfo(jnp.bfloat16).max)
    params = jnp.full(1000, most / 2, jnp.bfloat16)
    got = np.asarray(_rounded(params, jnp.full(1000, most * 0.3)), np.float64)
    assert np.isfinite(got).all()
    assert got.mean() == pytest.approx(0.8 * most, rel=1e-3)


def test_the_least_numbers_of_bfloat16_are_met_at_a_wider_spacing() -> None:
    least = 2.0**-102  # of 2**-126, float32 has no part
    params = jnp.full(COUNT, 3 * least, jnp.bfloat16)
    got = np.asarray(_rounded(params, jnp.full(COUNT, -1.25 * least)), np.float64)
    assert set(got) == {least, 2 * least}
    assert (got == least).mean() == pytest.approx(0.25, abs=5 * 0.5 / np.sqrt(COUNT))


@each_dtype
def test_what_all_but_vanishes_lands_on_steps_of_float32(dtype: Any) -> None:
    """On multiples of 2**-23 of the parameter, to which float32 has a step."""
    spacing, start = 2.0**-23, 2.0**-17
    params = jnp.ones(COUNT, dtype)
    step = start + spacing / 2 - 1
    assert float(np.float32(step)) == step
    got = np.asarray(_rounded(params, jnp.full(COUNT, step)), np.float64)
    assert set(got) == {start, start + spacing}
    assert (got == start).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(COUNT))


def test_a_thousand_small_steps_arrive() -> None:
    """Nearest rounding stays at 1; the exact end is 0.8."""
    params = jnp.ones(4096, jnp.bfloat16)
    got = _rounded(params, jnp.full(4096, -1e-3, jnp.float32), steps=200)
    assert float(got.astype(jnp.float32).mean()) == pytest.approx(0.8, abs=2e-3)
    nearest = params
    for _ in range(200):
        nearest = applied(nearest, jnp.full(4096, -1e-3, jnp.float32))
    assert_same(nearest, params)


def test_a_small_weight_decay_arrives_from_widened_gradients() -> None:
    """Beside a sign it is lost in bfloat16, before it can be rounded.

    But for compilers that keep more bits between operations, as those of GPUs do.
    """
    rate, decay, steps = 4e-3, 1.5e-3, 2000
    widen = optax.stateless(lambda g, _: optax.tree.cast(g, jnp.float32))
    lion = optax.chain(ot.lion(rate, weight_decay=decay, b1=0.5, b2=0.5))
    params = jnp.ones(2**14, jnp.bfloat16)
    ends = []
    for tx in lion, optax.chain(widen, lion):
        tx = optax.chain(tx, ot.round_stochastically(key=0))

        def step(carry: Any, sign: Any, tx: Any = tx) -> Any:
            params, state = carry
            grads = jnp.full_like(params, 1) * sign
            updates, state = tx.update(grads, state, params)
            return (applied(params, updates), state), None

        signs = jnp.asarray([1, -1] * (steps // 2), jnp.bfloat16)
        (end, _), _ = jax.lax.scan(step, (params, tx.init(params)), signs)
        ends.append(1 - float(end.astype(jnp.float32).mean()))
    assert ends[1] == pytest.approx(rate * decay * steps, rel=0.2)
    if jax.default_backend() == "cpu":
        assert abs(ends[0]) < rate * decay * steps / 4


def test_entries_steps_leaves_and_keys_draw_apart() -> None:
    half = jnp.full((64, 64), 2.0**-8, jnp.float32)
    params = {name: jnp.ones((64, 64), jnp.bfloat16) for name in "ab"}
    up = lambda tree: jax.tree.map(lambda leaf: np.asarray(leaf > 1), tree)
    one = up(_rounded(params, dict.fromkeys("ab", half)))
    two = up(_rounded(params, dict.fromkeys("ab", half), key=1))
    tx: Any = ot.round_stochastically(key=0)
    _, state = tx.update(dict.fromkeys("ab", half), tx.init(params), params)
    later, _ = tx.update(dict.fromkeys("ab", half), state, params)
    next_step = up(applied(params, later))
    streams = [one["a"], one["b"], two["a"], next_step["a"]]
    for i, first in enumerate(streams):
        for second in streams[i + 1 :]:
            same = (first == second).mean()
            assert abs(same - 0.5) < 5 * 0.5 / 64
        assert abs(first[:, 1:] ^ first[:, :-1]).mean() == pytest.approx(0.5, abs=0.05)


def test_other_leaves_pass_and_need_no_words() -> None:
    params = {
        "half": jnp.ones(3, jnp.float16),
        "whole": jnp.ones(3),
        "complex": jnp.ones(3, jnp.complex64),
        "hole": None,
    }
    updates = jax.tree.map(lambda p: (p * 0.1).astype(p.dtype), params)
    tx: Any = ot.round_stochastically(key=0)
    state = tx.init(params)
    assert len(state.words) == 1
    got, _ = tx.update(updates, state, params)
    for name in ("whole", "complex"):
        assert got[name] is updates[name]
    assert got["half"].dtype == jnp.float32
    plain = {"whole": params["whole"]}
    assert isinstance(tx.init(plain).words, jax.Array)
    assert_same(tx.update(plain, tx.init(plain), plain)[0], plain)


def test_the_words_of_a_leaf_do_not_hang_on_other_leaves() -> None:
    params = {"a": jnp.ones(99, jnp.bfloat16), "b": jnp.ones(99, jnp.bfloat16)}
    step = jnp.full(99, 1e-3)
    both = _rounded(params, {"a": step, "b": step})
    wide = {"a": jnp.ones(99), "b": params["b"]}
    assert_same(_rounded(wide, {"a": step, "b": step})["b"], both["b"])


def test_what_update_rejects() -> None:
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx: Any = ot.round_stochastically(key=0)
    state = tx.init(params)
    with pytest.raises(ValueError, match="round_stochastically needs params"):
        tx.update(params, state)
    wide = {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match="for 1 leaves of bfloat16 and float16 but"):
        tx.update(wide, state, wide)
    with pytest.raises(ValueError, match="at 'w', where params has shape"):
        tx.update({"w": jnp.ones(2)}, state, params)


@each_dtype
def test_derivatives_take_the_rounding_for_a_constant(dtype: Any) -> None:
    params = values((5,), dtype, 0)
    tx: Any = ot.round_stochastically(key=0)
    state = tx.init(params)

    def total(scale: Any) -> Any:
        updates, _ = tx.update(scale * jnp.ones(5), state, params)
        return (updates * jnp.arange(5.0)).sum()

    assert jax.grad(total)(jnp.float32(1e-3)) == 10.0


def test_a_compiled_step_keeps_no_array_beside_its_own() -> None:
    params = jnp.ones((1024, 1024), jnp.bfloat16)
    tx: Any = optax.chain(optax.sgd(1e-3), ot.round_stochastically(key=0))

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return applied(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(
        params, tx.init(params), params
    )
    compiled = lowered.compile()
    assert temp_bytes(compiled) < params.nbytes / 100


def test_the_same_on_every_mesh() -> None:
    devices = jax.devices()[:4]
    params = values((16, 8), jnp.bfloat16, 0)
    updates = values((16, 8), jnp.float32, 1) * np.float32(1e-3)
    want = _rounded(params, updates)
    for axes in (("rows", None), (None, "rows")):
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("rows",), axis_types=(kind,), devices=devices)
            place = NamedSharding(mesh, PartitionSpec(*axes))
            got = _rounded(*jax.device_put((params, updates), place))
            assert_same(got, want)
            assert got.sharding.spec == place.spec


class _Net(linen.Module):
    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return linen.Dense(4, param_dtype=jnp.bfloat16, dtype=jnp.bfloat16)(x)


def _chain() -> optax.GradientTransformation:
    return optax.chain(ot.lion(1e-4), ot.round_stochastically(key=0))


def _moves(before: Any, after: Any) -> float:
    pairs = zip(*map(jax.tree.leaves, (before, after)), strict=True)
    differ = [np.asarray(a != b).reshape(-1) for a, b in pairs]
    return float(np.concatenate(differ).mean())


def test_in_a_train_state() -> None:
    net = _Net()
    params = net.init(jax.random.key(0), jnp.ones((1, 64)))["params"]
    train = TrainState.create(apply_fn=net.apply, params=params, tx=_chain())
    step = jax.jit(lambda train, grads: train.apply_gradients(grads=grads))
    grads = jax.tree.map(jnp.ones_like, params)
    new = step(train, grads)
    assert jax.tree.map(jnp.result_type, new.params) == jax.tree.map(
        jnp.result_type, params
    )
    assert 0 < _moves(params["Dense_0"]["kernel"], new.params["Dense_0"]["kernel"]) < 1


def test_in_an_nnx_optimizer() -> None:
    model = nnx.Linear(64, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, _chain(), wrt=nnx.Param)
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))

    @nnx.jit
    def step(model: nnx.Linear, optimizer: Any) -> None:
        grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
        optimizer.update(model, grads)

    step(model, optimizer)
    assert model.kernel.dtype == jnp.bfloat16
    assert 0 < _moves(before["kernel"], model.kernel[...]) < 1


AROUND: dict[str, Callable[[Any], Any]] = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "at_window_end": lambda tx: ot.at_window_end(tx, accumulate_steps=2),
}


@pytest.mark.parametrize("around", AROUND)
def test_inside_a_window_nothing_moves_and_at_its_end_one_step_is_rounded(
    around: str,
) -> None:
    params = values((64,), jnp.bfloat16, 0)
    step = jnp.full(64, 1e-3, jnp.bfloat16)
    tx: Any = AROUND[around](ot.round_stochastically(key=0))
    state, seen = tx.init(params), params
    for call in range(4):
        updates, state = tx.update(step, state, seen)
        after = applied(seen, updates)
        assert bool((after == seen).all()) == (call % 2 == 0)
        seen = after
    assert_same(seen, _rounded(params, step, steps=2))


def test_the_average_behind_it_sees_what_lands() -> None:
    params = jnp.ones(512, jnp.bfloat16)
    tx: Any = optax.chain(
        optax.sgd(1e-3),
        ot.round_stochastically(key=0),
        ot.ema_params(0.0, dtype=jnp.float32),
    )
    updates, state = tx.update(jnp.ones_like(params), tx.init(params), params)
    landed = applied(params, updates)
    average = optax.tree.get(state, "ema")
    assert_same(average, landed.astype(jnp.float32))
    assert len(set(np.asarray(average).tolist())) == 2


def test_rows_of_a_sparse_gradient_are_rounded_inside_lazy_rows() -> None:
    table = jnp.full((40, 8), 1.5, jnp.bfloat16)
    inner = optax.chain(optax.sgd(0.3), ot.round_stochastically(key=0))
    tx: Any = ot.lazy_rows(inner, tables="", moments="freeze")
    grads = ot.RowSparse(jnp.arange(30), values((30, 8), jnp.float32, 0), 40)
    updates, _ = tx.update(grads, tx.init(table), table)
    assert_same(applied(table, updates), applied(table, updates.to_dense()))
    exact = 1.5 - 0.3 * np.asarray(grads.to_dense(), np.float64)
    low, high = _neighbours(exact.astype(np.float32).astype(np.float64), jnp.bfloat16)
    got = np.asarray(applied(table, updates), np.float64)
    assert ((got == low) | (got == high)).all()
    assert (got[30:] == 1.5).all()
