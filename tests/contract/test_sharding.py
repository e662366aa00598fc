"""On a mesh: the numbers of one device, placed as before, without communication."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.cases import CASES, Case
from tests.problems import assert_same, gradients

COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\b"
)
ROWS = ("rows", None)
COLUMNS = (None, "columns")
PLACEMENTS = {
    "replicated": (None, None),
    "rows": ROWS,
    "columns": COLUMNS,
    "both": ("rows", "columns"),
}
local_cases = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items() if case.elementwise],
)


def _mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind,) * 2)


def _place(tree: Any, mesh: jax.sharding.Mesh, axes: tuple[str | None, ...]) -> Any:
    put = lambda leaf: jax.device_put(
        leaf, NamedSharding(mesh, PartitionSpec(*axes[: leaf.ndim]))
    )
    return jax.tree.map(put, tree)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axes", PLACEMENTS.values(), ids=PLACEMENTS)
@local_cases
def test_any_placement_gives_the_bits_of_one_device_and_no_collective(
    case: Case, axes: tuple[str | None, ...], kind: AxisType
) -> None:
    params = case.params(jnp.float32)
    tx, extra = case.make(params), case.extra_args(params)
    one = jax.jit(tx.update)(gradients(params), tx.init(params), params, **extra)

    mesh = _mesh(kind)
    there = _place(params, mesh, axes)
    grads = _place(gradients(params), mesh, axes)
    state = case.make(there).init(there)
    compiled = jax.jit(tx.update).lower(grads, state, there, **extra).compile()
    updates, after = compiled(grads, state, there, **extra)
    assert_same((updates, after), one)
    assert not COLLECTIVE.findall(compiled.as_text() or "")
    for got, want in zip(*map(jax.tree.leaves, (updates, there)), strict=True):
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim)


@local_cases
def test_eager_init_places_the_state_for_good(case: Case) -> None:
    params = _place(case.params(jnp.float32), _mesh(AxisType.Explicit), ROWS)
    tx, extra = case.make(params), case.extra_args(params)
    state = tx.init(params)
    _, after = jax.jit(tx.update)(params, state, params, **extra)
    for before, now in zip(*map(jax.tree.leaves, (state, after)), strict=True):
        if len(before.sharding.device_set) > 1:
            assert now.sharding.is_equivalent_to(before.sharding, now.ndim)
    for leaf in jax.tree.leaves(state):
        shapes = {p.shape: p.sharding for p in jax.tree.leaves(params)}
        if leaf.ndim == 2 and leaf.shape in shapes:
            assert leaf.sharding.is_equivalent_to(shapes[leaf.shape], leaf.ndim)


def test_the_search_for_collectives_finds_one() -> None:
    there = _place({"w": jnp.ones((8, 16))}, _mesh(AxisType.Auto), ROWS)
    text = jax.jit(lambda tree: tree["w"].sum()).lower(there).compile().as_text()
    assert COLLECTIVE.findall(text or "")
