"""Saved in the middle of a run and read back, a state continues to the same bits."""

from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.cases import CASES, Case
from tests.problems import NnxNet, assert_same, gradients, layout

each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def midway() -> dict[str, Any]:
    """The state of every case after two steps."""
    return {name: _advance(case, None, range(2))[1] for name, case in CASES.items()}


@pytest.fixture(scope="module")
def from_orbax(
    midway: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The same states, written by Orbax all at once and read back."""
    path: Path = tmp_path_factory.mktemp("orbax") / "states"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, midway)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, jax.eval_shape(lambda: midway))


def _advance(case: Case, state: Any, seeds: range) -> Any:
    """The last updates and state, continuing from `state` or from the start."""
    params = case.params(jnp.bfloat16)
    tx: Any = case.make(params)
    state = tx.init(params) if state is None else state
    updates = None
    # A fixture of the module comes before the one that minds the promotion.
    with jax.numpy_dtype_promotion(case.promotion):
        for seed in seeds:
            grads = gradients(params, seed)
            updates, state = tx.update(grads, state, params, **case.extra_args(params))
    return updates, state


@each_case
def test_flax_msgpack_round_trip(name: str, midway: dict[str, Any]) -> None:
    case, state = CASES[name], midway[name]
    params = case.params(jnp.bfloat16)
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(case.make(params).init(params), data)
    assert_same(restored, state)
    # Flax gives NumPy arrays, whose bfloat16 arithmetic is not JAX's.
    restored = jax.tree.map(jnp.asarray, restored)
    want = _advance(case, state, range(2, 4))
    assert_same(_advance(case, restored, range(2, 4)), want)


@each_case
def test_orbax_round_trip(
    name: str, midway: dict[str, Any], from_orbax: dict[str, Any]
) -> None:
    case, state, restored = CASES[name], midway[name], from_orbax[name]
    assert_same(restored, state)
    assert layout(restored) == layout(state)
    want = _advance(case, state, range(2, 4))
    assert_same(_advance(case, restored, range(2, 4)), want)


ABSTRACT = {
    "chain": lambda ema: optax.chain(optax.adamw(0.1), ema),
    "partition": lambda ema: optax.partition(
        {"a": optax.chain(optax.sgd(0.5), ema), "b": optax.set_to_zero()},
        ot.label_by_path({"kernel": "a"}, default="b"),
    ),
    "ladder": lambda ema: ot.ladder(optax.chain(optax.sgd(0.5), ema), side="kernel"),
    "masked": lambda ema: optax.chain(
        optax.sgd(0.5), optax.masked(ema, lambda tree: ot.select(tree, "kernel"))
    ),
    "multi_steps": lambda ema: optax.MultiSteps(
        optax.chain(optax.sgd(0.5), ema), 2
    ).gradient_transformation(),
}


def _train(model: Any, optimizer: Any) -> None:
    """A step on a loss of which every gradient is the parameter."""
    optimizer.update(model, nnx.state(model, nnx.Param))


@pytest.mark.parametrize("wrap", ABSTRACT.values(), ids=ABSTRACT)
def test_an_average_is_restored_into_an_abstract_optimizer(
    wrap: Any, tmp_path: Path
) -> None:
    """Neither the abstract model nor what it is averaged to costs memory."""

    def make(model: Any) -> tuple[Any, Any]:
        tx = wrap(ot.ema_params(0.5, debias=True))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    def narrow() -> NnxNet:
        model = NnxNet()
        half = lambda x: x.astype(jnp.bfloat16)
        nnx.update(model, jax.tree.map(half, nnx.state(model, nnx.Param)))
        return model

    model, optimizer = make(narrow())
    abstract, empty = make(nnx.eval_shape(narrow))
    with jax.numpy_dtype_promotion("standard"):
        _train(model, optimizer)
    state = {"model": nnx.state(model), "optimizer": nnx.state(optimizer)}
    target = {"model": nnx.state(abstract), "optimizer": nnx.state(empty)}
    assert jax.tree.structure(state) == jax.tree.structure(target)
    averages = jax.tree.leaves(optax.tree.get(empty.opt_state, "ema"))
    assert {(type(x), x.dtype.name) for x in averages} == {
        (jax.ShapeDtypeStruct, "float32")
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", target)
    nnx.update(abstract, restored["model"])
    nnx.update(empty, restored["optimizer"])
    with jax.numpy_dtype_promotion("standard"):
        _train(model, optimizer)
        _train(abstract, empty)
    assert_same(nnx.state(abstract), nnx.state(model))
    assert_same(nnx.state(empty), nnx.state(optimizer))


def test_an_abstract_average_lies_where_its_parameter_does() -> None:
    mesh = jax.make_mesh((8,), ("rows",))
    there = NamedSharding(mesh, PartitionSpec("rows"))
    params = {
        "w": jax.ShapeDtypeStruct((16, 2), jnp.bfloat16, sharding=there),
        "count": jax.ShapeDtypeStruct((), np.int32),
    }
    init: Any = ot.ema_params(0.5).init
    ema = init(params).ema
    assert ema["w"] == jax.ShapeDtypeStruct((16, 2), jnp.float32, sharding=there)
    assert ema["count"] == params["count"]
    traced = jax.eval_shape(init, params).ema
    assert layout(traced) == layout(ema)


def test_a_checkpoint_read_without_a_target_names_the_cure(tmp_path: Path) -> None:
    params = {"w": jnp.ones(2)}
    tx = ot.scale_by_lion()
    data = flax.serialization.to_bytes(tx.init(params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", tx.init(params))
        checkpointer.wait_until_finished()
        from_orbax = checkpointer.restore(tmp_path / "state")
    for state in (
        from_orbax,
        flax.serialization.msgpack_restore(data),
        flax.serialization.from_bytes(None, data),
        jax.tree.leaves(tx.init(params)),
    ):
        with pytest.raises(TypeError, match=r"restore it into the abstract state jax"):
            tx.update(params, state)
    mixed = ot.mixed_sign(0.1, embeddings="emb")
    params = {"emb": jnp.ones((2, 2)), "w": jnp.ones((2, 2))}
    state = flax.serialization.to_state_dict(mixed.init(params))
    with pytest.raises(TypeError, match=r"PartitionState.*got dict.*jax.eval_shape"):
        mixed.update(params, state, params)
