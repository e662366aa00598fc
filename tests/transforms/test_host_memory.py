"""Parameters in a host's memory: a state for them, and a step once they come over."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.problems import (
    assert_same,
    entry_mask,
    gradients,
    layout,
    row_mask,
    small_tree,
    version,
)

MAKE: dict[str, Any] = {
    "compact": lambda p: ot.compact_entries(optax.trace(0.5), entry_mask(p)),
    "compact_rows": lambda p: ot.compact_entries(ot.ema_params(0.5), row_mask(p)),
    "keep": lambda p: ot.keep_entries(entry_mask(p), rescale=True),
    "dropout": lambda p: ot.gradient_dropout(0.5, key=0),
}
# On a mesh of Explicit axes, for CPUs.
COPIES_IN_PROGRAMS = version(jax) >= (0, 10)
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
each_mesh = pytest.mark.parametrize(
    ("axis_type", "count"),
    [(AxisType.Auto, 1), (AxisType.Auto, 8), (AxisType.Explicit, 8)],
)


def _placed(tree: Any, axis_type: AxisType, count: int, kind: str) -> Any:
    """Split over devices along the first axis."""
    devices = jax.devices()[:count]
    mesh = jax.make_mesh((count,), ("d",), axis_types=(axis_type,), devices=devices)

    def put(leaf: Any) -> jax.Array:
        spec = PartitionSpec("d") if leaf.ndim else PartitionSpec()
        sharding = NamedSharding(mesh, spec, memory_kind=kind)
        return jax.device_put(np.asarray(leaf), sharding)

    return jax.tree.map(put, tree)


@each
@each_mesh
def test_the_state_is_that_of_parameters_on_devices(
    make: Any, axis_type: AxisType, count: int
) -> None:
    params = small_tree(jnp.bfloat16)
    host, device = (
        _placed(params, axis_type, count, kind) for kind in ("pinned_host", "device")
    )
    tx = make(params)
    state, want = tx.init(host), tx.init(device)
    assert_same(state, want)
    if axis_type == AxisType.Auto or COPIES_IN_PROGRAMS:
        with jax.set_mesh(host["scale"].sharding.mesh):
            assert_same(jax.jit(tx.init)(host), want)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.memory_kind == "device"
    grads = _placed(gradients(params), axis_type, count, "device")
    assert_same(tx.update(grads, state, device), tx.update(grads, want, device))


@each_mesh
def test_kept_entries_are_read_where_they_are(axis_type: AxisType, count: int) -> None:
    """Parameters too large for a device may stay on the host in a step."""
    params = small_tree()
    inner = optax.chain(optax.add_decayed_weights(0.5), optax.trace(0.5))
    tx = ot.compact_entries(inner, entry_mask(params))
    host, device = (
        _placed(params, axis_type, count, kind) for kind in ("pinned_host", "device")
    )
    grads = _placed(gradients(params), axis_type, count, "device")
    state = tx.init(host)
    want = jax.jit(tx.update)(grads, state, device)
    assert_same(tx.update(grads, state, host), want)
    if axis_type == AxisType.Auto or COPIES_IN_PROGRAMS:
        assert_same(jax.jit(tx.update)(grads, state, host), want)


def test_a_leaf_without_a_mesh() -> None:
    device = jax.devices()[0]
    sharding = jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host")
    leaf = jax.device_put(np.ones((2, 3), np.float32), sharding)
    state: Any = ot.keep_entries(np.eye(2, 3, dtype=bool)).init(leaf)
    assert state.bits[0].sharding.memory_kind == "device"


def test_abstract_parameters_of_a_host_give_an_abstract_state() -> None:
    params = _placed(small_tree(), AxisType.Auto, 8, "pinned_host")
    tx = ot.compact_entries(optax.trace(0.5), entry_mask(params))
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params
    )
    state = tx.init(abstract)
    assert layout(state) == layout(tx.init(params))
