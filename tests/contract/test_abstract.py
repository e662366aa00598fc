"""From abstract parameters a state laid out as from real ones, as for a restore."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from tests.cases import CASES, Case
from tests.problems import NnxNet, assert_same, gradients, layout

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def abstract(params: Any) -> Any:
    return jax.eval_shape(lambda tree: tree, params)


@each_case
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_state_for_abstract_parameters(case: Case, dtype: str) -> None:
    params = case.params(jnp.dtype(dtype))
    tx = case.make(params)
    assert layout(tx.init(abstract(params))) == layout(tx.init(params))


def _train(model: Any, optimizer: Any, case: Case) -> None:
    params = nnx.state(model, nnx.Param)
    optimizer.update(model, gradients(params), **case.extra_args(params))


@each_case
def test_an_optimizer_of_an_abstract_model_takes_up_a_state(case: Case) -> None:
    """As one restores: shapes alone, then what a checkpoint holds."""

    def net() -> NnxNet:
        model = NnxNet()
        # Of a dtype that the case is there for.
        dtype = jax.tree.leaves(case.params(jnp.float32))[0].dtype
        cast = lambda leaf: leaf.astype(dtype)
        nnx.update(model, jax.tree.map(cast, nnx.state(model, nnx.Param)))
        return model

    def make(model: Any) -> tuple[Any, Any]:
        tx = optax.chain(case.make(nnx.state(real, nnx.Param)), optax.scale(-0.125))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    real = net()
    model, optimizer = make(real)
    other, empty = make(nnx.eval_shape(net))
    _train(model, optimizer, case)
    state = nnx.state((model, optimizer))
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state((other, empty)))
    nnx.update((other, empty), jax.tree.map(jnp.copy, state))
    _train(model, optimizer, case)
    _train(other, empty, case)
    assert_same(nnx.state((other, empty)), nnx.state((model, optimizer)))
