"""An NNX model that holds averages for a while, and its trained values again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optaxtricks as ot
from tests.problems import pure


class Net(nnx.Module):
    """A layer of bfloat16, a low-rank part beside it, and batch statistics."""

    def __init__(self) -> None:
        self.layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
        self.lora = nnx.LoRA(3, 1, 2, rngs=nnx.Rngs(1), b_initializer=_ones)
        self.seen = nnx.BatchStat(jnp.zeros(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.seen[...] += 1
        return self.layer(x.astype(jnp.bfloat16)).astype(jnp.float32) + self.lora(x)


_ones = nnx.initializers.ones
FILTERS: dict[str, Any] = {
    "params": nnx.Param,
    "lora": nnx.LoRAParam,
    "path": nnx.All(nnx.Param, nnx.PathContains("kernel")),
}


def _trained(wrt: Any, ema: Any = None) -> tuple[Any, Any, Any]:
    """A model after a step, its optimizer, and the parameters before the step."""
    model = Net()
    tx = optax.chain(optax.sgd(1.0), ema or ot.ema_params(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=wrt)
    before = pure(nnx.state(model, wrt))
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, wrt)))
    return model, optimizer, before


def _numbers(tree: Any) -> list[np.ndarray]:
    return [np.asarray(x).astype(np.float32) for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("wrt", FILTERS.values(), ids=FILTERS)
def test_averages_go_in_and_the_very_arrays_come_back(wrt: Any) -> None:
    model, optimizer, before = _trained(wrt)
    held = jax.tree.leaves(nnx.state(model))
    after = pure(nnx.state(model, wrt))
    with ot.nn.averaged(model, optimizer):
        inside = pure(nnx.state(model, wrt))
        assert [x.dtype for x in jax.tree.leaves(nnx.state(model))] == [
            x.dtype for x in held
        ]
    rows = zip(*map(_numbers, (inside, before, after)), strict=True)
    for got, old, new in rows:
        np.testing.assert_allclose(got, (old + new) / 2, rtol=1e-2)
        assert not np.array_equal(got, new)
    now = jax.tree.leaves(nnx.state(model))
    assert all(x is y for x, y in zip(now, held, strict=True))


def test_trained_values_come_back_after_an_exception() -> None:
    model, optimizer, _ = _trained(nnx.Param)
    held = jax.tree.leaves(nnx.state(model))
    with pytest.raises(KeyError), ot.nn.averaged(model, optimizer):
        raise KeyError
    now = jax.tree.leaves(nnx.state(model))
    assert all(x is y for x, y in zip(now, held, strict=True))


def test_compiled_evaluation_inside_and_around() -> None:
    model, optimizer, _ = _trained(nnx.Param)
    held, x = jax.tree.leaves(nnx.state(model, nnx.Param)), jnp.ones((4, 3))
    plain = model(x)

    @nnx.jit
    def within(model: Any, optimizer: Any) -> Any:
        with ot.nn.averaged(model, optimizer):
            return model(x)

    with ot.nn.averaged(model, optimizer):
        eager, jitted = model(x), nnx.jit(lambda model: model(x))(model)
    assert float(model.seen[...]) == 3  # what else changed stays
    np.testing.assert_allclose(jitted, eager, rtol=1e-2)
    np.testing.assert_allclose(within(model, optimizer), eager, rtol=1e-2)
    assert not np.allclose(eager, plain)
    now = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert all((a == b).all() for a, b in zip(now, held, strict=True))


def test_a_block_in_a_block_changes_nothing_more() -> None:
    model, optimizer, _ = _trained(nnx.Param)
    held = model.layer.kernel[...]
    with ot.nn.averaged(model, optimizer):
        outer = model.layer.kernel[...]
        with ot.nn.averaged(model, optimizer):
            np.testing.assert_array_equal(model.layer.kernel[...], outer)
        assert model.layer.kernel[...] is outer
    assert model.layer.kernel[...] is held


def test_only_what_is_averaged_changes() -> None:
    mask = lambda tree: ot.select(tree, "kernel")
    model, optimizer, _ = _trained(nnx.Param, optax.masked(ot.ema_params(0.5), mask))
    bias, kernel = model.layer.bias[...], model.layer.kernel[...]
    with ot.nn.averaged(model, optimizer):
        np.testing.assert_array_equal(model.layer.bias[...], bias)
        assert not np.array_equal(model.layer.kernel[...], kernel)


def test_training_inside_is_an_error_and_nothing_is_lost_of_the_model() -> None:
    model, optimizer, _ = _trained(nnx.Param)
    held = model.layer.kernel[...]
    grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    with pytest.raises(ValueError, match="took a step inside of averaged"):
        with ot.nn.averaged(model, optimizer):
            optimizer.update(model, grads)
    assert model.layer.kernel[...] is held


def test_bad_arguments() -> None:
    model, optimizer, _ = _trained(nnx.Param)
    with pytest.raises(TypeError, match=r"optimizer must be an nnx\.Opt"):
        with ot.nn.averaged(model, optimizer.opt_state):
            pass
    plain = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    with pytest.raises(ValueError, match="averaged found no average"):
        with ot.nn.averaged(model, plain):
            pass
