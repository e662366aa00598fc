"""Large tables in training: memory, and the steps of dense training."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optaxtricks as ot
from tests.nn.tables import (
    NUM_ROWS,
    TABLE_BYTES,
    WIDTH,
    batches,
    made_in,
    memory,
    touched,
)

SMALL = TABLE_BYTES // 20


def _optimizer() -> Any:
    return ot.lazy_rows(optax.adam(0.03), tables="embedding$", moments="freeze")


class NnxNet(nnx.Module):
    """Regression on pairs of ids, by two look-ups in one table."""

    def __init__(self, embed: Any):
        rngs = nnx.Rngs(0)
        self.embed = embed(NUM_ROWS, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids[:, 0]) - self.embed(ids[:, 1])
        return self.out(x)[:, 0]


class LinenNet(nn.Module):
    """The same in Linen."""

    embed: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = self.embed(NUM_ROWS, WIDTH, name="embed")
        x = embed(ids[:, 0]) - embed(ids[:, 1])
        return nn.Dense(1)(x)[:, 0]


def _squared(predicted: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(predicted - y).mean()


def _nnx_loss(model: NnxNet, ids: jax.Array, y: jax.Array) -> jax.Array:
    return _squared(model(ids), y)


def _linen_loss(apply: Any, ids: jax.Array, y: jax.Array) -> jax.Array:
    return _squared(apply(ids), y)


def _nnx_method(method: Any, embed: Any) -> tuple[Any, Any]:
    layout, state = nnx.split(NnxNet(embed))
    loss = method(_nnx_loss)
    return lambda state, *args: loss(nnx.merge(layout, state), *args), state


def _linen_methods() -> tuple[Any, Any, Any]:
    old, new = LinenNet(nn.Embed), LinenNet(ot.nn.linen.RowEmbed)
    params = old.init(jax.random.key(0), jnp.zeros((1, 2), int))["params"]
    apply = lambda params: lambda ids: old.apply({"params": params}, ids)
    dense = jax.value_and_grad(lambda p, *args: _linen_loss(apply(p), *args))
    return dense, ot.nn.linen.row_value_and_grad(new, _linen_loss), params


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_no_array_of_the_size_of_the_table_is_made(kind: str) -> None:
    batch = batches(1, 32)[0]
    if kind == "nnx":
        dense, state = _nnx_method(nnx.value_and_grad, nnx.Embed)
        sparse, same = _nnx_method(ot.nn.row_value_and_grad, ot.nn.RowEmbed)
    else:
        dense, sparse, state = _linen_methods()
        same = state
    assert made_in(dense, state, *batch)
    assert not made_in(sparse, same, *batch)
    needs = memory(sparse, same, *batch)
    assert needs.temp_size_in_bytes < SMALL
    assert needs.output_size_in_bytes < SMALL


def _nnx_run(method: Any, embed: Any, data: Any) -> tuple[list[float], np.ndarray]:
    @nnx.jit(donate_argnums=(0, 1))
    def step(model: Any, optimizer: Any, *args: Any) -> jax.Array:
        value, grads = method(_nnx_loss)(model, *args)
        optimizer.update(model, grads)
        return value

    model = NnxNet(embed)
    optimizer = nnx.Optimizer(model, _optimizer(), wrt=nnx.Param)
    place = _place(model.embed.embedding.get_value())
    values = [float(step(model, optimizer, *batch)) for batch in data]
    table = model.embed.embedding.get_value()
    assert embed is nnx.Embed or _place(table) == place
    return values, np.asarray(table)


def _linen_run(gradient: Any, params: Any, data: Any) -> tuple[list[float], np.ndarray]:
    def step(state: TrainState, *args: Any) -> Any:
        value, grads = gradient(state.params, *args)
        return state.apply_gradients(grads=grads), value

    params = jax.tree.map(jnp.copy, params)
    state = TrainState.create(apply_fn=None, params=params, tx=_optimizer())
    fast, values = jax.jit(step, donate_argnums=0), []
    for batch in data:
        state, value = fast(state, *batch)
        values.append(float(value))
    return values, np.asarray(state.params["embed"]["embedding"])


@pytest.mark.usefixtures("standard_promotion")
def test_a_donated_step_copies_no_table() -> None:
    _, gradient, params = _linen_methods()
    state = TrainState.create(apply_fn=None, params=params, tx=_optimizer())

    def step(state: TrainState, *args: Any) -> Any:
        return state.apply_gradients(grads=gradient(state.params, *args)[1])

    needs = memory(step, state, *batches(1, 64)[0], donate=0)
    # The table and both moments.
    assert needs.alias_size_in_bytes >= 3 * TABLE_BYTES
    assert needs.temp_size_in_bytes < SMALL


def _place(array: jax.Array) -> int:
    return array.unsafe_buffer_pointer()


def _assert_the_same_steps(got: Any, want: Any, data: Any) -> None:
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
    moved = touched(data)
    np.testing.assert_allclose(got[1][moved], want[1][moved], rtol=1e-3, atol=1e-5)
    rest = np.delete(np.arange(NUM_ROWS), moved)
    np.testing.assert_array_equal(got[1][rest], want[1][rest])
    assert got[0][-1] < 0.8 * got[0][0]


@pytest.mark.usefixtures("standard_promotion")
def test_nnx_training_takes_the_steps_of_dense_training() -> None:
    data = batches(2, 64) * 4
    want = _nnx_run(nnx.value_and_grad, nnx.Embed, data)
    got = _nnx_run(ot.nn.row_value_and_grad, ot.nn.RowEmbed, data)
    _assert_the_same_steps(got, want, data)


@pytest.mark.usefixtures("standard_promotion")
def test_linen_training_takes_the_steps_of_dense_training() -> None:
    dense, sparse, params = _linen_methods()
    data = batches(2, 64) * 4
    want, got = _linen_run(dense, params, data), _linen_run(sparse, params, data)
    _assert_the_same_steps(got, want, data)
