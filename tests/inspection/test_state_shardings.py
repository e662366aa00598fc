"""States made in place on eight devices, kept there by a step, restored to there."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

import optaxtricks as ot
from tests.cases import CASES, Case
from tests.problems import assert_same, entry_mask, gradients, small_tree, version

KINDS = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)


def _mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("rows", "cols"), axis_types=(kind,) * 2)


def _placed(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Matrices over both axes of the mesh, the rest over as many as it has."""
    spec = lambda leaf: PartitionSpec(*("rows", "cols")[: leaf.ndim])
    put = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec(leaf)))
    return jax.tree.map(put, tree)


def _assert_at(tree: Any, places: Any) -> None:
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    for leaf, place in pairs:
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.shape, place)


@pytest.fixture(autouse=True)
def promotion() -> Any:
    """Optax's Adam, inside some cases, needs it."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_leaves_the_state_where_init_made_it(case: Case) -> None:
    mesh = _mesh(AxisType.Auto)
    params = _placed(case.params(jnp.float32), mesh)
    tx = case.make(params)
    places = ot.state_shardings(tx, params)
    assert jax.tree.structure(places) == jax.tree.structure(tx.init(params))
    state = jax.jit(tx.init, out_shardings=places)(params)
    _assert_at(state, places)
    grads = _placed(gradients(params), mesh)
    _, after = jax.jit(tx.update)(grads, state, params)
    _assert_at(after, places)
    assert_same(state, tx.init(case.params(jnp.float32)))


@KINDS
def test_every_part_finds_its_parameter(kind: AxisType) -> None:
    params = _placed(small_tree(), _mesh(kind))
    specs = lambda tree: jax.tree.map(lambda s: s.spec, tree)
    own = jax.tree.map(lambda leaf: leaf.sharding.spec, params)
    tx = optax.chain(optax.adamw(1e-3), optax.trace(0.9))
    places = specs(ot.state_shardings(tx, params))
    adam = optax.tree.get(places, "mu"), optax.tree.get(places, "nu")
    assert adam == (own, own) and optax.tree.get(places, "trace") == own
    assert optax.tree.get(places, "count") == PartitionSpec()


@pytest.mark.skipif(
    version(optax) < (0, 2, 8), reason="its init shards no factored moments"
)
@KINDS
def test_a_part_of_lower_rank_has_its_parameters_axes(kind: AxisType) -> None:
    params = _placed(small_tree(), _mesh(kind))
    factored: Any = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    state = jax.eval_shape(factored.init, params)
    assert state.v_row["emb"].shape == (8,)
    places: Any = ot.state_shardings(factored, params)
    assert places.v_row["emb"].spec == PartitionSpec("cols")
    assert places.v_col["emb"].spec == PartitionSpec("rows")


def test_parameters_named_like_parts_of_the_state_are_not_mixed_up() -> None:
    mesh = _mesh(AxisType.Auto)
    at = lambda *axes: jax.device_put(
        jnp.ones((8, 8)), NamedSharding(mesh, PartitionSpec(*axes))
    )
    params = {"w": at("rows", "cols"), "mu": {"w": at(None, "cols")}}
    places: Any = ot.state_shardings(optax.scale_by_adam(), params)
    assert places.mu["w"].spec == PartitionSpec("rows", "cols")
    assert places.mu["mu"]["w"].spec == PartitionSpec(None, "cols")


def test_bits_of_masks_lie_beside_their_parameter() -> None:
    params = _placed({"w": jnp.ones((64, 8))}, _mesh(AxisType.Auto))
    mask = entry_mask(params)
    places = ot.state_shardings(ot.keep_entries(mask), params)
    assert places.bits[0].spec == PartitionSpec("rows", "cols")
    state = jax.jit(ot.keep_entries(mask).init, out_shardings=places)(params)
    assert state.bits[0].addressable_shards[0].data.shape == (2, 4)
    compact = ot.state_shardings(ot.compact_entries(optax.adam(1e-3), mask), params)
    assert {s.spec for s in jax.tree.leaves(compact)} <= {
        PartitionSpec(),
        PartitionSpec(None),
    }


def test_without_them_an_auto_mesh_copies_the_state_to_every_device() -> None:
    params = _placed({"w": jnp.ones((8, 8))}, _mesh(AxisType.Auto))
    state = jax.jit(ot.scale_by_lion().init)(params)
    assert state.mu["w"].sharding.is_fully_replicated


@KINDS
def test_abstract_parameters_give_the_same_places(kind: AxisType) -> None:
    params = _placed(small_tree(), _mesh(kind))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    tx = optax.adamw(1e-3)
    assert ot.state_shardings(tx, abstract) == ot.state_shardings(tx, params)


def test_one_device_and_parameters_in_variables() -> None:
    params = small_tree()
    places = jax.tree.leaves(ot.state_shardings(ot.lion(1e-3), params))
    assert {type(place) for place in places} == {SingleDeviceSharding}
    mesh = _mesh(AxisType.Auto)
    wrapped = nnx.State({"layer": {"w": nnx.Param(_placed(jnp.ones((8, 8)), mesh))}})
    tx = optax.adam(1e-3)
    places = ot.state_shardings(tx, wrapped)
    state = jax.jit(tx.init, out_shardings=places)(wrapped)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert {leaf.sharding.spec for leaf in moments} == {PartitionSpec("rows", "cols")}


def test_an_init_without_placeholder_or_explicit_axes() -> None:
    params = _placed({"w": jnp.ones((8, 8))}, _mesh(AxisType.Auto))

    def init(params: Any) -> Any:
        if jax.typeof(params["w"]).sharding.mesh.are_all_axes_explicit:
            raise TypeError("as an init of somebody else's may")
        return {"w": params["w"] * 0}

    update: Any = lambda updates, state, params=None: (updates, state)
    tx = optax.GradientTransformation(init, update)
    (place,) = jax.tree.leaves(ot.state_shardings(tx, params))
    assert place.spec == PartitionSpec()
    lbfgs = ot.state_shardings(optax.lbfgs(), params)
    assert optax.tree.get(lbfgs, "params")["w"].spec == PartitionSpec("rows", "cols")


def test_orbax_restores_to_there(tmp_path: Path) -> None:
    params = _placed(small_tree(), _mesh(AxisType.Auto))
    tx = optax.chain(ot.monitor_groups("a/b"), optax.adamw(1e-3))
    places = ot.state_shardings(tx, params)
    state = jax.jit(tx.init, out_shardings=places)(params)
    _, state = jax.jit(tx.update, out_shardings=(None, places))(params, state, params)
    target = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(tx.init, params),
        places,
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", target)
    assert_same(restored, state)
    _assert_at(restored, places)


def test_bad_arguments() -> None:
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match="needs parameters, but there is no leaf"):
        ot.state_shardings(tx, {})
    with pytest.raises(ValueError, match="leaf at 'w' has no sharding"):
        ot.state_shardings(tx, {"w": np.ones(3)})
    with pytest.raises(TypeError, match="tx must be an optax"):
        ot.state_shardings(3, {"w": jnp.ones(3)})
    there = jax.device_put(jnp.ones(3), jax.devices()[1])
    with pytest.raises(ValueError, match="those at 'a' and 'b' are not"):
        ot.state_shardings(tx, {"a": jnp.ones(3), "b": there})
