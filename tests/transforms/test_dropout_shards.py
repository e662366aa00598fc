"""Inside jax.shard_map: shards that draw anew, and what vmap over the blocks gives."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks
from tests.problems import assert_same

# Bad arguments are given on purpose.
ot: Any = optaxtricks
MESH = jax.make_mesh(
    (2, 2), ("x", "y"), devices=jax.devices()[:4], axis_types=(AxisType.Auto,) * 2
)
GRADS = {"b": jnp.ones(64), "w": jnp.ones((16, 64))}
WHERE = {"b": P("y"), "w": P("x", "y")}
FACTORIES: dict[str, Any] = {
    "gradient_dropout": ot.gradient_dropout,
    "update_dropout": ot.update_dropout,
    "child_tuning_f": lambda rate, **options: ot.child_tuning_f(
        optax.sgd(-1.0), rate, **options
    ),
}


def sharded(tx: Any, grads: Any, where: Any, *, check_vma: bool = True) -> Any:
    """Two updates, made block by block from one state."""

    def step(grads: Any, state: Any) -> Any:
        return tx.update(grads, state, grads)

    mapped: Any = jax.shard_map(
        step,
        mesh=MESH,
        in_specs=(where, P()),
        out_specs=(where, P()),
        check_vma=check_vma,
    )
    place = lambda leaf, spec: jax.device_put(leaf, NamedSharding(MESH, spec))
    grads, run = jax.tree.map(place, grads, where), jax.jit(mapped)
    first, state = run(grads, tx.init(grads))
    return first, run(grads, state)[0]


def blocks(leaf: Any) -> Any:
    """The leaf cut as on the mesh, by row and column of it."""
    whole = np.asarray(leaf)
    n, m = (size // 2 for size in whole.shape)
    return whole.reshape(2, n, 2, m).swapaxes(1, 2)


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_shards_draw_alike_without_a_name_and_anew_with_one(make: Any) -> None:
    where = {"w": P("x", "y")}
    grads = {"w": GRADS["w"]}
    masks = {}
    for name in (None, "x", "y", ("x", "y"), ("y", "x")):
        out = sharded(make(0.5, key=3, axis_name=name), grads, where)
        first, second = (blocks(tree["w"]) != 0 for tree in out)
        assert not (first == second).all()
        distinct = len({block.tobytes() for row in first for block in row})
        assert distinct == (1 if name is None else 2 ** len(name))
        masks[name] = first
    np.testing.assert_array_equal(masks["x"][:, 0], masks["x"][:, 1])
    np.testing.assert_array_equal(masks["y"][0], masks["y"][1])
    assert not (masks["x", "y"] == masks["y", "x"]).all()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"granularity": "row"},
    {"granularity": "leaf"},
    {"distribution": "gaussian"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("check_vma", [True, False])
def test_it_is_vmap_over_the_blocks(options: Any, check_vma: bool) -> None:
    tx = ot.gradient_dropout(0.5, key=3, axis_name=("x", "y"), **options)
    where = {"w": P("x", "y")}
    got = sharded(tx, {"w": GRADS["w"]}, where, check_vma=check_vma)[0]["w"]
    state = tx.init({"w": GRADS["w"]})
    update = lambda block: tx.update({"w": block}, state)[0]["w"]
    mapped = jax.vmap(jax.vmap(update, axis_name="y"), axis_name="x")
    want = mapped(jnp.asarray(blocks(GRADS["w"])))
    ulps = 4 if "distribution" in options else 0
    assert_same(jnp.asarray(blocks(got)), want, ulps=ulps)
    if not options:
        one = jax.vmap(lambda w: tx.update({"w": w}, state)[0]["w"], axis_name="x")
        with pytest.raises(ValueError, match="axis_name must name axes"):
            one(GRADS["w"])


def test_the_mask_of_a_shard() -> None:
    draw = lambda w: ot.dropout_mask(
        {"w": w}, 0.5, key=3, step=jnp.int32(0), axis_name=["x", "y"]
    )["w"]
    spec = P("x", "y")
    mask = jax.shard_map(draw, mesh=MESH, in_specs=spec, out_specs=spec)(GRADS["w"])
    tx = ot.gradient_dropout(0.5, key=3, axis_name=("x", "y"))
    got = sharded(tx, {"w": GRADS["w"]}, {"w": spec})[0]["w"]
    np.testing.assert_array_equal(got != 0, mask)


def test_shards_are_independent() -> None:
    """Agreements of two shards, in standard errors; and the rate of each."""
    grads, where = {"w": jnp.ones((256, 256))}, {"w": P("x", "y")}
    tx = ot.gradient_dropout(0.5, key=11, axis_name=("x", "y"))
    kept = blocks(sharded(tx, grads, where)[0]["w"]).reshape(4, -1) != 0
    error = math.sqrt(0.25 / kept.shape[1])
    for i in range(4):
        assert abs(kept[i].mean() - 0.5) < 5 * error
        for j in range(i):
            assert abs((kept[i] == kept[j]).mean() - 0.5) < 5 * error


def test_a_leaf_that_the_axis_does_not_divide_is_found_out_by_jax() -> None:
    tx = ot.gradient_dropout(0.5, key=3, axis_name=("x", "y"))
    with pytest.raises(ValueError, match="out_specs"):
        sharded(tx, GRADS, WHERE)
    parts: Any = {
        "both": ot.gradient_dropout(0.5, key=3, axis_name=("x", "y")),
        "one": ot.gradient_dropout(0.5, key=3, axis_name="y"),
    }
    tx = optax.partition(parts, {"b": "one", "w": "both"})
    got = sharded(tx, GRADS, WHERE)[0]
    assert not (got["b"][:32] == got["b"][32:]).all()


@pytest.mark.parametrize("check_vma", [True, False])
def test_a_layer_at_a_time(check_vma: bool) -> None:
    grads, where = {"w": jnp.ones((3, 16, 8))}, {"w": P(None, "x", "y")}
    inner = ot.gradient_dropout(0.5, key=3, axis_name=("x", "y"))
    tx = ot.per_layer(inner, "w")
    got = sharded(tx, grads, where, check_vma=check_vma)[0]["w"]
    cut = np.stack([blocks(layer) for layer in np.asarray(got)])
    assert len({block.tobytes() for block in cut.reshape(12, -1)}) == 12


def test_errors() -> None:
    for wrong in (1, ["x", 1], {"x": 0}, object()):
        with pytest.raises(TypeError, match="axis_name must be names of axes"):
            ot.gradient_dropout(0.5, key=0, axis_name=wrong)
    with pytest.raises(ValueError, match="axis_name must name an axis once"):
        ot.update_dropout(0.5, key=0, axis_name=("x", "x"))
    tx = ot.gradient_dropout(0.5, key=0, axis_name="x")
    with pytest.raises(ValueError, match=r"mapped over .* jax.shard_map, got \('x',\)"):
        tx.update(GRADS, tx.init(GRADS))
    with pytest.raises(ValueError, match=r"axis_name must name axes .* got \('z',\)"):
        sharded(ot.gradient_dropout(0.5, key=0, axis_name="z"), GRADS, WHERE)
    with pytest.raises(ValueError, match="axis_name must name axes that are mapped"):
        ot.dropout_mask(GRADS, 0.5, key=0, step=0, axis_name="x")
