"""Row-sparse gradients against dense arrays."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks
from tests.problems import applied, temp_bytes, values

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

ROWS, WIDTH = 7, 3


def dense(ids, cotangents, num_rows=ROWS):
    """What the table's gradient is by definition, in NumPy."""
    ids, cotangents = np.asarray(ids), np.asarray(cotangents, np.float64)
    table = np.zeros((num_rows + 1, *cotangents.shape[ids.ndim :]))
    np.add.at(table, ids, cotangents)
    return table[:num_rows]


@pytest.mark.parametrize(
    "ids",
    [
        3,
        [4, 0, 4, 4, 6],
        [[1, 2], [2, 1], [0, 5]],
        [[[6], [6]], [[6], [6]]],
        [ROWS, 2, ROWS, 2],
        [ROWS, ROWS],
        [],
    ],
    ids=str,
)
@pytest.mark.parametrize("compiled", [False, True])
def test_lookups_add_up(ids, compiled):
    ids = np.asarray(ids, np.int32)
    rows = values((*ids.shape, WIDTH), jnp.float32, 1)
    make = lambda ids, rows: ot.RowSparse.from_lookup(ids, rows, ROWS)
    grad = (jax.jit(make) if compiled else make)(ids, rows)
    np.testing.assert_allclose(grad.to_dense(), dense(ids, rows), rtol=1e-6)
    assert (grad.shape, grad.dtype, grad.ndim) == ((ROWS, WIDTH), jnp.float32, 2)
    # Distinct and ascending, then padding with rows of zeros.
    seen = np.asarray(grad.indices)
    count = len(np.unique(ids[ids < ROWS]))
    assert grad.distinct and seen.shape == (ids.size,)
    assert (np.diff(seen[:count]) > 0).all() and (seen[count:] == ROWS).all()
    assert not np.asarray(grad.values)[count:].any()


@pytest.mark.parametrize("row", [(), (2, 4)])
def test_rows_have_any_shape(row):
    ids = np.asarray([1, 5, 1])
    rows = values((3, *row), jnp.float32, 2)
    grad = ot.RowSparse.from_lookup(ids, rows, ROWS)
    np.testing.assert_allclose(grad.to_dense(), dense(ids, rows), rtol=1e-6)


def test_narrow_rows_are_summed_wide():
    ids = jnp.zeros(300, jnp.int32)
    grad = ot.RowSparse.from_lookup(ids, jnp.ones((300, 1), jnp.bfloat16), 1)
    assert grad.dtype == jnp.bfloat16
    assert float(grad.to_dense()[0, 0]) == 300.0  # in bfloat16 256 + 1 is 256


def test_ids_out_of_range_are_dropped_where_they_cannot_be_refused():
    make = jax.jit(lambda ids, rows: ot.RowSparse.from_lookup(ids, rows, ROWS))
    ids = jnp.asarray([-1, 2, ROWS + 5, -(2**31)])
    got = make(ids, jnp.ones((4, 1))).to_dense()
    assert got[:, 0].tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_repeated_indices_add_up_however_they_came():
    rows = ot.RowSparse(jnp.asarray([2, 2, ROWS, 0]), jnp.ones((4, 1)), ROWS)
    assert not rows.distinct
    assert (jnp.ones((ROWS, 1)) + rows)[:, 0].tolist() == [2, 1, 3, 1, 1, 1, 1]
    summed = rows.summed()
    assert summed.indices.tolist() == [0, 2, ROWS, ROWS]
    assert summed.summed() is summed


def test_optax_adds_it_to_any_array():
    rows = ot.RowSparse(jnp.asarray([1]), jnp.full((1, 2), 0.5), 3)
    for table in jnp.ones((3, 2)), np.ones((3, 2), np.float32):
        params = applied({"e": table, "w": jnp.ones(1)}, {"e": rows, "w": 1.0})
        assert params["e"].tolist() == [[1, 1], [1.5, 1.5], [1, 1]]
    narrow: Any = applied(jnp.ones((3, 2), jnp.bfloat16), rows)
    assert narrow.dtype == jnp.bfloat16


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("compiled", [False, True])
def test_wide_rows_are_added_to_a_narrow_table_as_arrays_are(compiled):
    table, rows = values((6, 4), jnp.bfloat16, 0), values((3, 4), jnp.float32, 1)
    sparse = optaxtricks.RowSparse(jnp.array([5, 2, 5]), rows, 6)
    add = jax.jit(applied) if compiled else applied
    got = add(table, sparse)
    assert got.dtype == jnp.bfloat16
    assert (got == applied(table, sparse.to_dense())).all()


def test_it_is_a_node_that_jax_takes_apart_and_puts_together():
    grad = ot.RowSparse.from_lookup(jnp.asarray([1, 1]), jnp.ones((2, 1)), 3)
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(grad)]
    assert paths == [".indices", ".values", ".seal"]
    again = jax.jit(lambda x: x)(grad)
    assert (again.num_rows, again.distinct) == (3, True)
    assert jax.eval_shape(lambda x: x, grad).shape == (3, 1)
    assert "num_rows=3" in repr(grad)
    stacked = jax.vmap(
        lambda ids, rows: ot.RowSparse.from_lookup(ids, rows, 3).to_dense()
    )(jnp.asarray([[0, 1], [2, 2]]), jnp.ones((2, 2, 1)))
    assert stacked[..., 0].tolist() == [[1, 1, 0], [0, 0, 2]]


def test_the_table_is_changed_in_place():
    table, rows = jnp.ones((4096, 8)), jnp.ones((3, 8))
    add = lambda table, ids, rows: table + ot.RowSparse.from_lookup(ids, rows, 4096)
    ids = jnp.asarray([1, 2, 1])
    lowered = jax.jit(add, donate_argnums=0).lower(table, ids, rows)
    assert temp_bytes(lowered.compile()) < 4096


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], [[1.0]], 3), TypeError, "indices must be integers, got float32"),
        (([0], [[1]], 3), TypeError, "rows must be floats, got int32"),
        (([0, 1], [[1.0]], 3), ValueError, r"got \(2,\) and \(1, 1\)"),
        (([[0]], [[1.0]], 3), ValueError, r"got \(1, 1\) and \(1, 1\)"),
        (([0], 1.0, 3), ValueError, r"got \(1,\) and \(\)"),
        (([4], [[1.0]], 3), ValueError, r"indices must lie in \[0, 3\], got 4 to 4"),
        (([-1], [[1.0]], 3), ValueError, r"indices must lie in \[0, 3\]"),
        (([0], [[1.0]], 0), ValueError, "num_rows must lie in"),
        (([0], [[1.0]], 3.0), TypeError, "num_rows must be an int"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ot.RowSparse(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0.0], [[1.0]], 3), TypeError, "ids must be integers"),
        (([[0, 1]], [[1.0]], 3), ValueError, "cotangents must have the shape of ids"),
        (([4], [[1.0]], 3), ValueError, r"ids must lie in \[0, 3\], got 4 to 4"),
        (([0], [[1.0]], True), TypeError, "num_rows must be an int"),
    ],
    ids=str,
)
def test_bad_lookups(arguments, error, message):
    with pytest.raises(error, match=message):
        ot.RowSparse.from_lookup(*arguments)


def test_a_table_of_another_shape_is_refused():
    rows = ot.RowSparse(jnp.asarray([1]), jnp.ones((1, 2)), 3)
    with pytest.raises(ValueError, match=r"table of shape \(3, 2\) cannot be added"):
        jnp.ones((4, 2)) + rows


@pytest.mark.parametrize(
    ("dtype", "num_rows", "ids"),
    [
        ("uint8", 256, [1, 100]),
        ("uint8", 260, [1, 255]),
        ("int8", 128, [127, 0]),
        ("uint16", 65536, [1, 40000]),
        ("int16", 40000, [-3, 300]),
        ("uint32", 7, [1, 6]),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_ids_of_any_integer_dtype_name_the_same_rows(dtype, num_rows, ids, compiled):
    ids = np.asarray(ids, dtype)
    rows = jnp.ones((2, 1))
    known = np.where(ids < 0, num_rows, ids.astype(np.int64))
    for make in (
        lambda ids: ot.RowSparse.from_lookup(ids, rows, num_rows),
        lambda ids: ot.RowSparse(ids, rows, num_rows),
        lambda ids: ot.RowSparse(ids, rows, num_rows).summed(),
    ):
        if not compiled and (ids < 0).any():
            with pytest.raises(ValueError, match="must lie in"):
                make(ids)
            continue
        grad = (jax.jit(make) if compiled else make)(ids)
        want = dense(known, rows, num_rows)
        np.testing.assert_array_equal(grad.to_dense(), want)


def test_an_empty_list_of_ids_is_an_empty_gradient():
    for grad in (
        ot.RowSparse([], jnp.ones((0, 2)), 3),
        ot.RowSparse.from_lookup([], jnp.ones((0, 2)), 3),
    ):
        assert not grad.to_dense().any()


ROW = {"e": ot.RowSparse.from_lookup(jnp.asarray([1]), jnp.ones((1, 2)), 3)}
OTHER = {"e": ot.RowSparse.from_lookup(jnp.asarray([2]), jnp.ones((1, 2)), 3)}
MAPS = {
    "sum": lambda tree: jax.tree.map(jnp.add, tree, tree),
    "negated": lambda tree: jax.tree.map(lambda x: -x, tree),
    "difference": lambda tree: jax.tree.map(jnp.subtract, tree, OTHER),
    "doubled": lambda tree: jax.tree.map(lambda x: 2 * x, tree),
    "constant": lambda tree: jax.tree.map(jnp.ones_like, tree),
}


@pytest.mark.parametrize("change", MAPS.values(), ids=MAPS)
def test_arithmetic_on_its_arrays_is_found_out(change):
    with pytest.raises(ValueError, match="did arithmetic on its arrays; put it inside"):
        jnp.ones((3, 2)) + change(ROW)["e"]
    lazy = ot.lazy_rows(optax.sgd(1.0), tables="e", moments="freeze")
    step = lambda tree: lazy.update(change(tree), lazy.init({"e": jnp.ones((3, 2))}))
    with pytest.raises(ValueError, match="did arithmetic on its arrays"):
        step(ROW)
    # Where it cannot be refused, nothing goes on as if it were right.
    table = jax.jit(lambda tree: jnp.ones((3, 2)) + change(tree)["e"])(ROW)
    assert jnp.isnan(table).any()


def test_floats_for_indices_are_found_out():
    scaled = jax.tree.map(lambda x: 0.5 * x.astype(float), ROW)
    with pytest.raises(TypeError, match="became float32: a transformation outside"):
        jnp.ones((3, 2)) + scaled["e"]
    lazy = ot.lazy_rows(optax.sgd(1.0), tables="e", moments="freeze")
    with pytest.raises(TypeError, match="became float32: a transformation outside"):
        lazy.update(scaled, lazy.init({"e": jnp.ones((3, 2))}))


@pytest.mark.parametrize("compiled", [False, True])
def test_zeros_like_is_a_gradient_of_no_rows(compiled):
    def step(tree):
        nothing = jax.tree.map(lambda x: jnp.where(False, x, jnp.zeros_like(x)), tree)
        # As an accumulator starts: nothing, and then the first gradient.
        first = jax.tree.map(jnp.add, nothing, tree)
        return nothing["e"].to_dense(), first["e"].to_dense()

    nothing, first = (jax.jit(step) if compiled else step)(ROW)
    assert not nothing.any()
    np.testing.assert_array_equal(first, ROW["e"].to_dense())
    adam = ot.lazy_rows(optax.trace(0.5), tables="e", moments="freeze")
    state = adam.update(ROW, adam.init({"e": jnp.ones((3, 2))}))[1]
    zeros = jax.tree.map(jnp.zeros_like, ROW)
    updates, after = adam.update(zeros, state)
    assert not updates["e"].to_dense().any()
    np.testing.assert_array_equal(after.trace["e"], state.trace["e"])


def test_a_stacked_one_is_an_error():
    make = lambda ids: ot.RowSparse(ids, jnp.ones((1, 2)), 3)
    stacked = jax.vmap(make)(jnp.asarray([[0], [1]]))
    with pytest.raises(ValueError, match=r"is stacked, \(2,\) in one: use it inside"):
        stacked.to_dense()
    assert jax.vmap(lambda rows: rows.to_dense())(stacked).shape == (2, 3, 2)


def test_two_gradients_add_up_as_nodes():
    one = ot.RowSparse(jnp.asarray([1, 1]), jnp.ones((2, 1)), 3)
    two = ot.RowSparse(jnp.asarray([2, 1, 3]), jnp.ones((3, 1)), 3)
    assert (one + two).to_dense()[:, 0].tolist() == [0, 3, 1]
    assert (one + jnp.ones((3, 1)))[:, 0].tolist() == [1, 3, 1]
    with pytest.raises(ValueError, match=r"cannot be added to one of shape \(4, 1\)"):
        one + ot.RowSparse(jnp.asarray([0]), jnp.ones((1, 1)), 4)


def test_a_negative_index_is_dropped_where_it_cannot_be_refused():
    make = jax.jit(lambda i: ot.RowSparse(i, jnp.ones((2, 1)), 3).to_dense())
    assert make(jnp.asarray([-1, 0]))[:, 0].tolist() == [1, 0, 0]


def test_selectors_and_labels_take_it_for_one_leaf():
    tree = {"e": ROW["e"], "w": jnp.ones(2)}
    assert ot.select(tree, "e") == {"e": True, "w": False}
    assert ot.label_by_path({"e$": "a"}, default="b")(tree) == {"e": "a", "w": "b"}
    table, rest = ot.split(tree, "e")
    assert table == {"e": tree["e"], "w": None} and rest["e"] is None
    assert ot.merge(table, rest) == tree
