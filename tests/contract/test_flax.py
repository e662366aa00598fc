"""In Flax's own training loops every case walks the path it walks in plain JAX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from tests.cases import CASES, Case
from tests.problems import (
    STEPS,
    LinenNet,
    NnxNet,
    assert_same_leaves,
    inputs_and_targets,
    linen_params,
    pure,
    squared_error,
)

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
RATE = -0.125


def _optimizer(case: Case, params: Any) -> Any:
    return optax.chain(case.make(params), optax.scale(RATE))


def _linen_gradients(params: Any) -> Any:
    x, y = inputs_and_targets()
    net: Any = LinenNet()
    return jax.grad(lambda p: squared_error(net.apply({"params": p}, x), y))(params)


@each_case
def test_linen_train_state(case: Case) -> None:
    params: Any = linen_params()
    tx = _optimizer(case, params)
    extra = case.extra_args(params)
    flow = optax.GradientTransformation(tx.init, partial(tx.update, **extra))
    train = TrainState.create(apply_fn=LinenNet().apply, params=params, tx=flow)
    state = tx.init(params)
    for _ in range(STEPS):
        train = train.apply_gradients(grads=_linen_gradients(train.params))
        updates, state = tx.update(_linen_gradients(params), state, params, **extra)
        params = optax.apply_updates(params, updates)
    assert_same_leaves((train.params, train.opt_state), (params, state))
    assert int(train.step) == STEPS


@each_case
def test_nnx_optimizer(case: Case) -> None:
    model = NnxNet()
    wrapped = nnx.state(model, nnx.Param)
    params: Any = jax.tree.map(jnp.copy, nnx.to_pure_dict(wrapped))
    optimizer = nnx.Optimizer(model, _optimizer(case, wrapped), wrt=nnx.Param)
    tx = _optimizer(case, params)
    state, (x, y) = tx.init(params), inputs_and_targets()
    for _ in range(STEPS):
        grads = nnx.grad(lambda model: squared_error(model(x), y))(model)
        plain = jax.tree.map(jnp.copy, nnx.to_pure_dict(grads))
        optimizer.update(model, grads, **case.extra_args(wrapped))
        updates, state = tx.update(plain, state, params, **case.extra_args(params))
        params = optax.apply_updates(params, updates)
    assert_same_leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
    assert_same_leaves(pure(optimizer.opt_state), state)
