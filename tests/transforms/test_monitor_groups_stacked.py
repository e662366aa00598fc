"""Readings of stacks: one for each layer, as the list of the layers would have."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.collectives import exchanges
from tests.problems import assert_same, layout, temp_bytes, values

LAYERS = 3
AXES = {"bias": 0, "kernel": 1, "wide": -1}


def _stack(dtype: Any = jnp.float32) -> Any:
    """Layers on several axes: rows read in runs and not, zero rows, a zero layer."""
    shapes = {"bias": (40,), "kernel": (6, 384), "wide": (5, 403)}
    parts = {name: values((LAYERS, *s), dtype, 3) for name, s in shapes.items()}
    holed = {
        name: leaf.at[0, 1].set(0).at[1, ..., 2].set(0).at[2].set(0)
        for name, leaf in parts.items()
    }
    return {k: jnp.moveaxis(leaf, 0, AXES[k]) for k, leaf in holed.items()}


def _layer(tree: Any, i: int) -> Any:
    return {name: leaf.take(i, axis=AXES[name]) for name, leaf in tree.items()}


def _found(tx: Any, updates: Any) -> dict[str, float]:
    _, state = jax.jit(tx.update)(updates, tx.init(updates))
    return {name: float(value) for name, value in ot.metrics(state).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_a_stack_reads_as_the_list_of_its_layers(dtype: str) -> None:
    tree = _stack(jnp.dtype(dtype))
    got = _found(ot.monitor_groups("blocks", stacked=AXES), tree)
    layers = {"blocks": {str(i): _layer(tree, i) for i in range(LAYERS)}}
    labels = {"blocks": {str(i): f"blocks/{i}" for i in range(LAYERS)}}
    want = _found(ot.monitor_groups(labels), layers)
    assert got.keys() == want.keys()
    for name, value in want.items():
        counted = name.endswith("fraction")
        assert got[name] == (value if counted else pytest.approx(value, rel=2e-6))
    assert got["updates/blocks/2/zero_fraction"] == 1.0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_readings_are_those_of_numpy(axis: int) -> None:
    tree = values((4, 6, 384), jnp.float32, 1).at[1, 2].set(0)
    stack = jnp.moveaxis(tree, 0, axis)
    tx = ot.monitor_groups("w", stacked={"": axis})
    _, state = tx.update({"w": stack}, tx.init({"w": stack}))
    readings: Any = state
    readings = readings.readings["updates"]["w"]
    assert all(x.shape == (4,) and x.dtype == jnp.float32 for x in readings.values())
    exact = np.asarray(tree, np.float64)
    flat = np.abs(exact).reshape(4, -1)
    norms = np.sqrt((flat**2).sum(axis=1))
    np.testing.assert_allclose(readings["norm"], norms, rtol=2e-6)
    rms = norms / math.sqrt(6 * 384)
    np.testing.assert_allclose(readings["rms"], rms, rtol=2e-6)
    np.testing.assert_array_equal(readings["max"], flat.max(axis=1))
    np.testing.assert_allclose(readings["zero_fraction"], [0, 1 / 6, 0, 0], rtol=1e-7)
    active = [1, 5 / 6, 1, 1]  # rows are those of a layer
    np.testing.assert_allclose(readings["active_row_fraction"], active, rtol=1e-7)


def test_a_layer_of_rank_one_has_no_rows() -> None:
    updates = {"b": jnp.ones((3, 5)), "w": jnp.zeros((3, 2, 5)).at[0, 0].set(1)}
    got = _found(ot.monitor_groups("all", stacked=""), updates)
    rows = [got[f"updates/all/{i}/active_row_fraction"] for i in range(3)]
    assert rows == [0.5, 0, 0]
    assert _found(ot.monitor_groups("all"), updates)[
        "updates/all/active_row_fraction"
    ] == pytest.approx(4 / 6)


def test_other_labels_are_read_as_ever() -> None:
    updates = {"emb": values((4, 6), jnp.float32, 1), "layers": _stack()}
    labels = {"emb": "emb", "layers": "layers"}
    stacked = {f"^layers/{name}": axis for name, axis in AXES.items()}
    got = _found(ot.monitor_groups(labels, stacked=stacked), updates)
    plain = _found(ot.monitor_groups(labels), updates)
    alone = {name: value for name, value in got.items() if "/emb/" in name}
    assert alone == {name: value for name, value in plain.items() if "/emb/" in name}
    assert len(alone) == 5 and len(got) == 5 * (1 + LAYERS)
    rms = [got[f"updates/layers/{i}/rms"] for i in range(LAYERS)]
    together = math.sqrt(sum(x * x for x in rms) / LAYERS)
    assert together == pytest.approx(plain["updates/layers/rms"], rel=1e-6)


def test_updates_pass_bit_for_bit_and_gradients_as_if_it_were_not_there() -> None:
    odd = jnp.asarray([[-0.0, jnp.nan], [jnp.inf, 1e-45]])
    tx = ot.monitor_groups("all", stacked="")
    got, _ = jax.jit(tx.update)({"w": odd}, tx.init({"w": odd}))
    assert_same(got, {"w": odd})
    x = values((2, 4, 384), jnp.float32, 2)
    state = tx.init({"w": x})

    def loss(x: Any) -> Any:
        both: Any = tx.update({"w": x * x}, state)
        return both[0]["w"].sum() + ot.metrics(both[1])["updates/all/1/rms"]

    assert_same(jax.grad(loss)(x), 2 * x)


def test_empty_layers_and_holes_count_for_nothing() -> None:
    updates = {
        "empty": jnp.zeros((2, 0, 4)),
        "flat": jnp.zeros((2, 3, 0)),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    got = _found(ot.monitor_groups("all", stacked=""), updates)
    assert len(got) == 10 and set(got.values()) == {0.0}
    more = {**updates, "w": jnp.ones((2, 2))}
    got = _found(ot.monitor_groups("all", stacked=""), more)
    assert got["updates/all/1/rms"] == 1
    assert _found(ot.monitor_groups("all", stacked=""), {"w": jnp.ones((0, 2))}) == {}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("divided", ["layers", "rows", "columns", "all"])
def test_devices_exchange_a_number_a_layer(divided: str, axis: int, kind: Any) -> None:
    mesh = jax.make_mesh((2, 2, 2), ("x", "y", "z"), axis_types=(kind,) * 3)
    names: list[Any] = [
        name if divided in (what, "all") else None
        for name, what in zip("xyz", ("layers", "rows", "columns"), strict=True)
    ]
    names.insert(axis, names.pop(0))
    tree = values((4, 8, 384), jnp.float32, 1).at[1, 3].set(0)
    updates = {"w": jnp.moveaxis(tree, 0, axis)}
    there = jax.device_put(updates, NamedSharding(mesh, PartitionSpec(*names)))
    tx = ot.monitor_groups("all", stacked={"w": axis})
    state = tx.init(there)
    compiled = jax.jit(tx.update).lower(there, state).compile()
    bits = 4 * 8 if divided in ("columns", "all") else 0  # of rows that are divided
    for found in exchanges(compiled.as_text()):
        assert found.size <= max(4, bits) and found.kind == "all-reduce"
    got = {k: float(v) for k, v in ot.metrics(compiled(there, state)[1]).items()}
    assert got == pytest.approx(_found(tx, updates), rel=1e-6)

    def step(state: Any, _: Any) -> Any:
        _, state = tx.update(there, state)
        return state, ot.metrics(state)

    with jax.set_mesh(mesh):
        last, history = jax.jit(lambda s: jax.lax.scan(step, s, length=2))(state)
    assert layout(last) == layout(state)
    rms = [value for name, value in history.items() if name.endswith("/rms")]
    assert [x.shape for x in rms] == [(2,)] * 4


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_readings_are_whole_on_every_device(kind: AxisType) -> None:
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    updates = {"w": jnp.ones((4, 8)).at[2, 0].set(jnp.nan).at[1, 1].set(jnp.inf)}
    there = jax.device_put(updates, NamedSharding(mesh, PartitionSpec("x")))
    tx = ot.monitor_groups("all", stacked="")
    _, state = jax.jit(tx.update)(there, tx.init(there))
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated
    found = [float(ot.metrics(state)[f"updates/all/{i}/max"]) for i in range(4)]
    assert found[0] == found[3] == 1 and found[1] == np.inf and np.isnan(found[2])
    inside = ot.per_layer(ot.monitor_groups("all"), "")
    _, state = jax.jit(inside.update)(there, inside.init(there))
    largest = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, jax.Array))[1]
    assert largest.tolist() == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_no_array_of_the_size_of_a_stack_is_written(axis: int) -> None:
    updates = {"w": jnp.moveaxis(jnp.ones((6, 512, 768)), 0, axis)}
    tx = ot.monitor_groups("all", stacked={"w": axis})
    step = lambda updates, state: tx.update(updates, state)[1]
    compiled = jax.jit(step).lower(updates, tx.init(updates)).compile()
    # The sums of runs: four and a byte for 16 entries.
    assert temp_bytes(compiled) <= 1.1 * 4.25 / 16 * updates["w"].nbytes


def test_it_batches_and_lowers_for_every_platform() -> None:
    tx = ot.monitor_groups("all", stacked={"w": 1})
    updates = {"w": values((2, 4, 3, 384), jnp.float32, 2)}
    step = lambda updates: ot.metrics(tx.update(updates, tx.init(updates))[1])
    batched = jax.vmap(step)(updates)
    for i in range(2):
        each = step({"w": updates["w"][i]})
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), each, ulps=4)
    traced = jax.jit(step).trace({"w": updates["w"][0]})
    for platform in ("cpu", "cuda", "tpu"):
        assert traced.lower(lowering_platforms=(platform,)).as_text()


def test_metrics_are_scalars_before_and_after_the_first_update() -> None:
    tx = optax.chain(
        ot.monitor_groups("blocks", name="grads", stacked=""), optax.scale(-0.5)
    )
    grads = {"w": jnp.asarray([[3.0, 4.0], [6.0, 8.0]])}
    state = tx.init(grads)
    assert set(ot.metrics(state)) == set(ot.metrics(tx.update(grads, state)[1]))
    found = ot.metrics(tx.update(grads, state)[1])
    assert all(x.shape == () and x.dtype == jnp.float32 for x in found.values())
    assert float(found["grads/blocks/0/norm"]) == 5
    assert float(found["grads/blocks/1/norm"]) == 10
    twice = optax.chain(
        ot.monitor_groups("blocks", stacked=""), ot.monitor_groups("blocks/1")
    )
    with pytest.raises(ValueError, match="two monitors report 'updates/blocks/1/"):
        ot.metrics(twice.init(grads))


def test_the_state_of_an_nnx_optimizer() -> None:
    class Stack(nnx.Module):
        def __init__(self) -> None:
            self.kernel = nnx.Param(values((3, 2, 2), jnp.float32, 1))

    model = Stack()
    tx = optax.chain(ot.monitor_groups("blocks", stacked="kernel"), optax.sgd(0.5))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(2):
        grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
        optimizer.update(model, grads)
    found = ot.metrics(optimizer.opt_state)
    assert [float(found[f"updates/blocks/{i}/norm"]) for i in range(3)] == [2, 2, 2]


def test_curves_of_layers_are_drawn_one_by_one() -> None:
    plots: Any = ot.plots
    tx = ot.monitor_groups("blocks", stacked="")
    history = []
    for size in (1.0, 2.0):
        grads = {"w": size * jnp.asarray([[1.0, 1.0], [0.5, 0.0]])}
        history.append(ot.metrics(tx.update(grads, tx.init(grads))[1]))
    lines = {
        x.get_label(): list(x.get_ydata()) for x in plots.update_rms(history).lines
    }
    assert list(lines) == ["updates/blocks/0", "updates/blocks/1"]
    assert lines["updates/blocks/0"] == [1.0, 2.0]


def test_a_label_has_one_number_of_layers() -> None:
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((4, 3)), "c": jnp.ones(3)}
    message = r"the label 'x' must have leaves of one number of layers, got "
    both = message + r"2 layers: 'a'; no stack: 'b', 'c'\. Give each kind a label"
    with pytest.raises(ValueError, match=both):
        ot.monitor_groups("x", stacked="a").init(params)
    with pytest.raises(ValueError, match=message + "2 layers: 'a'; 4 layers: 'b'; no"):
        ot.monitor_groups("x", stacked="[ab]").init(params)
    for axis in (0, 1):
        tx = ot.monitor_groups({"a": "x", "b": "y", "c": "z"}, stacked={"[ab]": axis})
        tx.init(params)


def test_updates_must_have_the_layers_that_init_saw() -> None:
    tx = ot.monitor_groups("x", stacked="")
    state = tx.init({"w": jnp.ones((2, 3))})
    message = r"readings of shape \(2,\) for the label 'x' but got updates with \(4,\)"
    with pytest.raises(ValueError, match=message):
        tx.update({"w": jnp.ones((4, 3))}, state)
    with pytest.raises(ValueError, match=r"shape \(2,\) .* got updates with \(\)"):
        ot.monitor_groups("x").update({"w": jnp.ones((2, 3))}, state)


def test_rows_of_a_row_sparse_update_are_no_layers() -> None:
    rows = ot.RowSparse(jnp.array([0]), jnp.ones((1, 2)), 3)
    params = {"emb": jnp.ones((3, 2)), "w": jnp.ones((4, 2))}
    tx = ot.monitor_groups({"emb": "table", "w": "w"}, stacked="^w$")
    _, state = tx.update({**params, "emb": rows}, tx.init(params))
    assert float(ot.metrics(state)["updates/table/active_row_fraction"]) > 0
    tx = ot.monitor_groups({"emb": "table", "w": "w"}, stacked="")
    with pytest.raises(ValueError, match="update at 'emb' is a RowSparse, whose rows"):
        tx.update({**params, "emb": rows}, tx.init(params))
