"""Lazy rows of tables that are spread over a mesh."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.problems import applied, assert_same, values

pytestmark = pytest.mark.usefixtures("standard_promotion")
ROWS, WIDTH = 32, 8
PLACEMENTS = {
    "rows": ("rows", None),
    "columns": (None, "columns"),
    "both": ("rows", "columns"),
}
each_kind = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
each_placement = pytest.mark.parametrize("axes", PLACEMENTS.values(), ids=PLACEMENTS)
LAZY = ot.lazy_rows(optax.adamw(0.1, weight_decay=0.5), tables=".*", moments="freeze")
IDS = jnp.asarray([3, 17, 3, ROWS, 30], jnp.int32)


def placed(x, kind, axes):
    """The table on a mesh of eight devices."""
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind,) * 2)
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*axes)))


def step(table, state, grad, **extra):
    """One step; the new table and state."""
    updates, state = LAZY.update(grad, state, table, **extra)
    return applied(table, updates), state


def gradient():
    """Dense, with few rows that are not zero."""
    return jnp.zeros((ROWS, WIDTH)) + sparse()


def sparse():
    """The same as rows."""
    return ot.RowSparse.from_lookup(IDS, values((5, WIDTH), jnp.float32, 2), ROWS)


def check(axes, kind, make, **extra):
    """Two steps on a mesh against one device; the compiled text of a step."""
    table = values((ROWS, WIDTH), jnp.float32, 1)
    want = table, LAZY.init(table)
    there = placed(table, kind, axes)
    got = there, LAZY.init(there)
    place = lambda g: placed(g, kind, axes) if isinstance(g, jax.Array) else g
    for _ in range(2):
        want = jax.jit(step)(*want, make(), **extra)
        got = jax.jit(step)(*got, place(make()), **extra)
    assert_same(got, want, ulps=4)
    assert got[0].sharding.is_equivalent_to(there.sharding, 2)
    untouched = np.setdiff1d(np.arange(ROWS), np.asarray(IDS))
    assert_same(np.asarray(got[0])[untouched], table[untouched])
    return jax.jit(step).lower(*got, place(make()), **extra).compile().as_text()


def sizes(text):
    """Numbers of entries that collectives exchange."""
    found = re.findall(r"= \(?\w+\[([\d,]*)\][^=]*? (?:all|collective|reduce)-\w", text)
    return [int(np.prod([int(n) for n in f.split(",") if n])) for f in found]


@each_kind
@each_placement
def test_dense_gradients(axes, kind):
    text = check(axes, kind, gradient)
    assert max(sizes(text), default=0) <= ROWS  # a bit for each row


@each_kind
@each_placement
def test_active_rows(axes, kind):
    check(axes, kind, gradient, active_rows={"": IDS})


@each_kind
@each_placement
def test_row_sparse_gradients(axes, kind):
    text = check(axes, kind, sparse)
    assert max(sizes(text), default=0) <= IDS.size * WIDTH  # ids and rows


@each_placement
def test_duplicates_of_sharded_rows_add_up(axes):
    rows = values((4, WIDTH), jnp.float32, 3)
    ids = jnp.asarray([5, 1, 5, ROWS])
    add_up = lambda rows: ot.RowSparse.from_lookup(ids, rows, ROWS).values
    got = jax.jit(add_up)(placed(rows, AxisType.Explicit, axes))
    assert jax.typeof(got).sharding.spec == PartitionSpec(None, *axes[1:])
    assert_same(got, add_up(rows))
