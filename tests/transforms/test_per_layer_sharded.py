"""Stacks over a mesh: one device's numbers, every part in its place, little to send."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.collectives import exchanges
from tests.problems import assert_same, gradients, values

# Axes of a leaf that is stacked on axis 1, and of a table beside it.
PLACEMENTS = {
    "layers": ((None, "layers", None), ("width", None)),
    "width": (("width", None, None), ("width", None)),
    "both": (("width", "layers", None), (None, "width")),
    "layers_beside": ((None, "layers", None), ("layers", None)),
}
INNER = {
    "tiger": lambda: ot.tiger(0.1),
    "dropout_lamb": lambda: optax.chain(
        ot.gradient_dropout(0.5, key=0), optax.lamb(0.1)
    ),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "skip": lambda: ot.update_dropout(0.5, key=1, granularity="leaf"),
}
each_kind = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
each_inner = pytest.mark.parametrize(
    "inner",
    [
        pytest.param(make, id=name, marks=[] if name == "tiger" else pytest.mark.slow)
        for name, make in INNER.items()
    ],
)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def _params() -> Any:
    return {
        "emb": values((8, 4), jnp.float32, 0),
        "layers": {
            "b": values((8, 4), jnp.float32, 1),
            "w": values((8, 4, 8), jnp.float32, 2),
        },
    }


def _placed(tree: Any, kind: AxisType, placement: str) -> Any:
    mesh = jax.make_mesh((4, 2), ("layers", "width"), axis_types=(kind,) * 2)
    stack, table = PLACEMENTS[placement]

    def put(leaf: Any, axes: Any) -> Any:
        spec = PartitionSpec(*axes[: leaf.ndim])
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    layers = {name: put(leaf, stack) for name, leaf in tree["layers"].items()}
    return {"emb": put(tree["emb"], table), "layers": layers}


@each_kind
@pytest.mark.parametrize("placement", PLACEMENTS)
@each_inner
def test_any_placement_gives_one_devices_numbers(
    inner: Any, placement: str, kind: AxisType
) -> None:
    tx, params = ot.per_layer(inner(), {"^layers/": 1}), _params()
    grads = gradients(params)
    want = jax.jit(tx.update)(grads, tx.init(params), params)
    there, pulls = (_placed(tree, kind, placement) for tree in (params, grads))
    state = tx.init(there)
    places = ot.state_shardings(tx, there)
    made = jax.jit(tx.init, out_shardings=places)(there)
    shapes = {leaf.shape: leaf.sharding for leaf in jax.tree.leaves(there)}
    for eager, traced in zip(*map(jax.tree.leaves, (state, made)), strict=True):
        if eager.shape in shapes and eager.ndim == 3:
            known = shapes[eager.shape]
            assert eager.sharding.is_equivalent_to(known, 3)
            assert traced.sharding.is_equivalent_to(known, 3)
    compiled = jax.jit(tx.update).lower(pulls, state, there).compile()
    got = compiled(pulls, state, there)
    assert_same(got, want, ulps=8)
    for update, leaf in zip(*map(jax.tree.leaves, (got[0], there)), strict=True):
        assert update.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    found = exchanges(compiled.as_text())
    assert all(exchange.kind == "all-reduce" for exchange in found)
    # Finiteness, a sum of squares: one number of each layer. Rows are Adafactor's.
    each = 8 if inner is INNER["adafactor"] else 1
    assert all(exchange.size <= 4 * each for exchange in found)


@each_kind
def test_element_wise_transformations_send_nothing(kind: AxisType) -> None:
    there = _placed(_params(), kind, "both")
    tx = ot.per_layer(
        optax.chain(ot.gradient_dropout(0.5, key=0), ot.scale_by_lion()),
        {"^layers/": 1},
    )
    state = jax.jit(tx.init, out_shardings=ot.state_shardings(tx, there))(there)
    compiled = jax.jit(tx.update).lower(there, state, there).compile()
    assert exchanges(compiled.as_text()) == []


@each_kind
def test_stacks_are_of_one_group_however_their_other_axes_are_divided(
    kind: AxisType,
) -> None:
    """A number over both of them is one a layer, which two groups could not share."""
    mesh = jax.make_mesh((4, 2), ("layers", "width"), axis_types=(kind,) * 2)
    put = lambda leaf, *axes: jax.device_put(
        leaf, NamedSharding(mesh, PartitionSpec(*axes))
    )
    params = {
        "b": put(jnp.ones((8, 4)), None, None),
        "w": put(jnp.ones((8, 4, 4)), None, "width", None),
    }
    tx = ot.per_layer(ot.monitor_groups("all"), "")
    _, state = jax.jit(tx.update)(params, tx.init(params), params)
    norms = optax.tree.get(state, "readings")["updates"]["all"]["norm"]
    assert_same(norms, jnp.full(8, jnp.sqrt(20.0)), ulps=2)


@each_inner
def test_inside_shard_map_a_block_is_a_stack_of_its_own(inner: Any) -> None:
    tx, params = ot.per_layer(inner(), {"^layers/": 1}), _params()
    grads = gradients(params)
    step = lambda grads, params: tx.update(grads, tx.init(params), params)[0]
    part = lambda i: jax.tree.map(lambda x: jnp.split(x, 4, 1)[i], (grads, params))
    blocks = [jax.jit(step)(*part(i)) for i in range(4)]
    want = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, 1), *blocks)
    where = PartitionSpec(None, "layers")
    mesh = jax.make_mesh((4,), ("layers",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(where, where), out_specs=where)
    assert_same(jax.jit(mapped)(grads, params), want, ulps=8)
