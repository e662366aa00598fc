"""Averages in the place of parameters: where they lie, what they are laid out like."""

from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optaxtricks as ot
from tests.problems import (
    CONTAINERS,
    NnxNet,
    assert_same,
    assert_same_leaves,
    layout,
    linen_params,
    small_tree,
    values,
)


def _ema() -> Any:
    return ot.ema_params(0.5)


def _label(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: "b" if jnp.ndim(leaf) > 1 else "a", tree)


# Each with the leaves that it averages, told by their rank.
WRAPPED: dict[str, tuple[Any, Any]] = {
    "chain": (lambda: optax.chain(optax.scale(-1.0), _ema()), lambda rank: True),
    "partition": (
        lambda: optax.partition(
            {"a": optax.set_to_zero(), "b": optax.chain(optax.sgd(1.0), _ema())}, _label
        ),
        lambda rank: rank > 1,
    ),
    "two_parts": (
        lambda: optax.partition(
            {"a": _ema(), "b": optax.chain(optax.sgd(1.0), _ema())}, _label
        ),
        lambda rank: True,
    ),
    "masked": (
        lambda: optax.masked(
            _ema(), lambda tree: jax.tree.map(lambda x: jnp.ndim(x) < 2, tree)
        ),
        lambda rank: rank < 2,
    ),
    "ladder": (
        lambda: ot.ladder(_ema(), side=lambda path, leaf: jnp.ndim(leaf) > 1),
        lambda rank: rank > 1,
    ),
    "multi_steps": (
        lambda: optax.MultiSteps(_ema(), 1).gradient_transformation(),
        lambda rank: True,
    ),
    "injected": (
        lambda: optax.inject_hyperparams(ot.ema_params)(0.5),
        lambda rank: True,
    ),
}


def _stepped(tx: Any, params: Any) -> Any:
    grads = jax.tree.map(lambda x: values(x.shape, x.dtype, 9), params)
    with jax.numpy_dtype_promotion("standard"):
        updates, state = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", WRAPPED)
def test_found_wherever_they_are(name: str, dtype: Any) -> None:
    make, has = WRAPPED[name]
    before = small_tree(dtype)
    after, state = _stepped(make(), before)
    mean = lambda x, y: (x.astype(jnp.float32) / 2 + y.astype(jnp.float32) / 2).astype(
        dtype
    )
    pick = lambda x, y: mean(x, y) if has(jnp.ndim(x)) else y
    want = jax.tree.map(pick, before, after)
    for step in ot.averaged_params, jax.jit(ot.averaged_params):
        got = step(after, state)
        assert_same(got, want, ulps=2)
        assert layout(got) == layout(after)


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_are_those_of_the_parameters(make: Any) -> None:
    params = make(jnp.ones(3), jnp.zeros((2, 3)))
    state = _ema().init(params)
    assert_same(ot.averaged_params(params, state), params)
    plain: Any = CONTAINERS["dict"](jnp.ones(3) * 5, jnp.ones((2, 3)))
    # Matched by path, also where the state has other containers.
    assert_same_leaves(ot.averaged_params(plain, state), params)


def test_linen_parameters_frozen_or_not() -> None:
    params = linen_params()
    state = _ema().init(params)
    frozen = flax.core.freeze(params)
    assert_same(ot.averaged_params(frozen, state), frozen)


def test_leaves_without_an_average_come_back_as_they_are() -> None:
    tree = {"w": jnp.ones(2)}
    more = {**tree, "key": jax.random.key(0), "f": jnp.sin, "n": 3, "none": None}
    got: Any = ot.averaged_params(more, _ema().init(tree))
    assert got["f"] is jnp.sin and got["n"] == 3 and got["none"] is None
    assert (jax.random.key_data(got["key"]) == jax.random.key_data(more["key"])).all()


def test_no_buffer_is_that_of_the_parameters_or_the_state() -> None:
    params = {"w": jnp.ones(50), "rest": jnp.zeros(50)}
    mask = {"w": True, "rest": False}
    pointers = lambda tree: {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}
    for step in ot.averaged_params, jax.jit(ot.averaged_params):
        state = optax.masked(_ema(), mask).init(params)
        got = step(params, state)
        assert not pointers(got) & pointers([params, state])
    numpy = {**params, "rest": np.zeros(50, np.float32)}
    copies: Any = ot.averaged_params(numpy, state)
    assert not np.shares_memory(np.asarray(copies["rest"]), numpy["rest"])


def test_what_cannot_be_told_is_refused() -> None:
    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    twice = optax.chain(_ema(), _ema()).init(params)
    with pytest.raises(ValueError, match=r"leaf at 'b'.*tree\.get"):
        ot.averaged_params(params, twice)
    with pytest.raises(ValueError, match=r"no average in opt_state.*without a target"):
        ot.averaged_params(params, optax.adam(0.1).init(params))
    with pytest.raises(ValueError, match="average of 'b', but params has no such"):
        ot.averaged_params({"w": jnp.ones(2)}, _ema().init(params))
    with pytest.raises(ValueError, match=r"shape \(4,\) at 'w'.*of shape \(2,\)"):
        ot.averaged_params({**params, "w": jnp.ones(4)}, _ema().init(params))


def test_the_state_of_an_nnx_optimizer() -> None:
    model = NnxNet()
    optimizer = nnx.Optimizer(model, _ema(), wrt=nnx.Param)
    params = nnx.state(model, nnx.Param)
    got: Any = ot.averaged_params(params, optimizer.opt_state)
    assert_same_leaves(got, params)
    assert np.array_equal(got["scale"][...], model.scale[...])
