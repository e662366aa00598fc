"""Over devices the search for the largest entries moves counts, and nothing else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optaxtricks._core import top_entries
from tests.collectives import exchanges
from tests.problems import values

LIMIT = np.asarray(5, np.uint32)
CUTS = np.ones((3, 2), np.uint32)
# Every pass of the search: the program, and what it takes besides the leaf.
PASSES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "reaching": (top_entries._reaching, (np.arange(7, dtype=np.uint32), True)),
    "against": (top_entries._against, (LIMIT, True)),
    "tied_before": (top_entries._tied_before, (LIMIT, CUTS, True)),
    "invalid": (top_entries._invalid, (True,)),
    "mask": (top_entries._mask, (LIMIT, CUTS[:1])),
}
PLACEMENTS = {
    "columns": (None, "columns"),
    "both": ("rows", "columns"),
    "one axis over all": (("rows", "columns"), None),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axes", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_reduces_scalars(name: str, axes: Any, kind: AxisType) -> None:
    program, rest = PASSES[name]
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind,) * 2)
    scores = jnp.abs(values((16, 8), jnp.float32, 0))
    there = jax.device_put(scores, NamedSharding(mesh, PartitionSpec(*axes)))
    run: Any = program.lower(there, *rest).compile()
    found = exchanges(run.as_text())
    assert all(x.kind == "all-reduce" and x.shape == () for x in found)
    assert found or name == "mask"
    arguments = [x for x in rest if x is not True]
    np.testing.assert_array_equal(run(there, *arguments), program(scores, *rest))


LAYERS = 4


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("axes", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("name", [x for x in PASSES if x != "invalid"])
def test_a_pass_over_layers_moves_counts_of_each(
    name: str, axes: Any, axis: int, kind: AxisType
) -> None:
    program, rest = PASSES[name]
    words = [np.stack([x] * LAYERS, -1) for x in rest if x is not True]
    mesh = jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(kind,) * 2)
    shape = [8, 16]
    shape.insert(axis, LAYERS)
    scores = jnp.abs(values(tuple(shape), jnp.float32, 0))
    # The layers themselves may be spread, over four devices at most.
    spec = ["columns" if x == ("rows", "columns") else x for x in axes]
    there = jax.device_put(scores, NamedSharding(mesh, PartitionSpec(*spec)))
    static, out, whole = (True,), -1, NamedSharding(mesh, PartitionSpec())
    if name == "mask":
        static, out, whole = (), axis, None
    run: Any = top_entries._each_layer(program, axis, out, static, whole)
    found = exchanges(run.lower(there, *words).compile().as_text())
    assert all(x.kind in ("all-reduce", "all-gather") for x in found)
    assert all(x.size <= 7 * 2 * LAYERS for x in found)
    assert found if name != "mask" else not found
    got = run(there, *words)
    assert name == "mask" or got.is_fully_replicated
    for i in range(LAYERS):
        layer, own = jnp.take(scores, i, axis), [word[..., i] for word in words]
        want = program(layer, *own, *static)
        np.testing.assert_array_equal(np.take(np.asarray(got), i, out), want)
