"""On a mesh: the numbers of one device, placed as before, without communication.

But for the collectives that a case names, and none where all devices have all entries.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from tests.cases import CASES, Case
from tests.collectives import ALLOWED, Exchange, exchanges
from tests.problems import assert_same, gradients, version

NEWEST = version(jax) >= (0, 11)
ROWS = ("rows", None)
COLUMNS = (None, "columns")
PLACEMENTS = {
    "replicated": (None, None),
    "columns": COLUMNS,
    "both": ("rows", "columns"),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
each_kind = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)


def _mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind,) * 2)


def _place(tree: Any, mesh: jax.sharding.Mesh, axes: tuple[str | None, ...]) -> Any:
    put = lambda leaf: jax.device_put(
        leaf, NamedSharding(mesh, PartitionSpec(*axes[: leaf.ndim]))
    )
    return jax.tree.map(put, tree)


@functools.cache
def _on_one_device(name: str) -> Any:
    case = CASES[name]
    params = case.params(jnp.float32)
    tx, extra = case.make(params), case.extra_args(params)
    return jax.jit(tx.update)(gradients(params), tx.init(params), params, **extra)


@pytest.mark.parametrize(
    "kind",
    [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("axes", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize("name", CASES)
def test_any_placement_gives_one_devices_numbers_and_exchanges_what_the_case_names(
    name: str, axes: tuple[str | None, ...], kind: AxisType
) -> None:
    case = CASES[name]
    params = case.params(jnp.float32)
    tx, extra = case.make(params), case.extra_args(params)
    mesh = _mesh(kind)
    there = _place(params, mesh, axes)
    grads = _place(gradients(params), mesh, axes)
    state = case.make(there).init(there)
    compiled = jax.jit(tx.update).lower(grads, state, there, **extra).compile()
    updates, after = compiled(grads, state, there, **extra)
    one = _on_one_device(name)
    # A sum over devices adds up in another order, and JAX 0.12 rounds a logarithm of
    # many entries at once otherwise than that of the last few.
    exact = case.elementwise and not ("gaussian" in name and NEWEST)
    assert_same((updates, after), one, ulps=0 if exact else case.ulps)
    quiet = case.elementwise or not any(axes)
    allowed = ALLOWED["nothing" if quiet else case.exchange]
    leaf = max((x.shape for x in jax.tree.leaves(params)), key=math.prod)
    found = exchanges(compiled.as_text())
    assert [x for x in found if not allowed(x, leaf)] == []
    if case.exchange in ("leaves", "nothing") and kind is AxisType.Auto:
        return  # where the compiler puts what is whole, or zero, is its own affair
    for got, want in zip(*map(jax.tree.leaves, (updates, there)), strict=True):
        # JAX 0.12 leaves it a zero of an Explicit mesh as well.
        zero = case.exchange == "nothing" and NEWEST and not got.any()
        assert zero or got.sharding.is_equivalent_to(want.sharding, got.ndim)


@each_case
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
    assert exchanges(text) == [Exchange("all-reduce", ())]
    line = "%x = (f32[16,8]{0,1}, /*index=1*/pred[]) all-gather-start(%a, %b), dims={}"
    gathered = [Exchange("all-gather", (16, 8)), Exchange("all-gather", ())]
    assert exchanges(line) == gathered
    assert not any(ALLOWED["rows"](x, (16, 8)) for x in gathered)


@each_kind
@each_case
def test_lowers_for_a_pod_that_is_not_there(case: Case, kind: AxisType) -> None:
    names = ("rows", "columns", "replicas")
    mesh = AbstractMesh((8, 8, 4), names, axis_types=(kind,) * 3)

    def abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*names[: leaf.ndim]))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = case.params(jnp.bfloat16)
    there = jax.tree.map(abstract, params)
    tx = case.make(params)
    state = jax.eval_shape(tx.init, there)
    extra = case.extra_args(params)
    traced = jax.jit(tx.update).trace(there, state, there, **extra)
    for platform in ("cuda", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "mhlo.num_partitions = 256" in text
