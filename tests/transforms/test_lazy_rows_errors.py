"""What lazy rows refuse, and what the message names."""

from typing import Any, cast

import jax.numpy as jnp
import optax
import pytest

import optaxtricks
from tests.problems import small_tree

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)
pytestmark = pytest.mark.usefixtures("standard_promotion")
ADAM = optax.adam(0.1)


@pytest.mark.parametrize(
    ("update", "error", "message"),
    [
        ({"active_rows": {"x": [0]}}, ValueError, "names 'x'; the tables are 'emb'"),
        ({"active_rows": {"w": [0]}}, ValueError, "names 'w'; the tables are 'emb'"),
        ({"active_rows": {"emb": {"x": [0]}}}, ValueError, "names 'emb/x'; the tables"),
        ({"active_rows": [0]}, TypeError, "active_rows must map paths to rows"),
        ({"active_rows": {"emb": [0.5]}}, TypeError, r"\['emb'\] must be integers"),
        ({"active_rows": {"emb": [9]}}, ValueError, r"must lie in \[0, 4\], got 9"),
        ({"active_rows": {"emb": [-1]}}, ValueError, r"must lie in \[0, 4\], got -1"),
        (
            {"active_rows": {"emb": [True]}},
            ValueError,
            r"must have shape \(4,\) if it is bool",
        ),
    ],
    ids=str,
)
def test_bad_active_rows(update, error, message):
    lazy = ot.lazy_rows(optax.sgd(1.0), tables="emb")
    params = {"emb": jnp.ones((4, 2)), "w": jnp.ones(2)}
    with pytest.raises(error, match=message):
        lazy.update(params, lazy.init(params), params, **update)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tables": "x"}, ValueError, "tables 'x' matches no leaf"),
        ({"tables": "scale"}, ValueError, "tables chooses scalars, .* 'scale'"),
        ({"moments": "thaw"}, ValueError, "moments must be one of"),
        ({"inner": None}, TypeError, "inner must be an optax.GradientTransformation"),
    ],
    ids=str,
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ot.lazy_rows(**{"inner": ADAM, "tables": "emb", **arguments}).init(small_tree())


def test_row_sparse_gradients_in_the_wrong_place():
    rows = ot.RowSparse(jnp.asarray([0]), jnp.ones((1, 2)), 4)
    params = {"emb": jnp.ones((4, 2)), "w": jnp.ones((4, 2))}
    lazy = ot.lazy_rows(ADAM, tables="emb")
    with pytest.raises(ValueError, match="needs moments='freeze'"):
        lazy.update({**params, "emb": rows}, lazy.init(params), params)
    lazy = ot.lazy_rows(ADAM, tables="emb", moments="freeze")
    state = lazy.init(params)
    with pytest.raises(ValueError, match="at 'w' is a RowSparse, but no table's"):
        lazy.update({**params, "w": rows}, state, params)
    active = {"active_rows": {"emb": jnp.asarray([0])}}
    with pytest.raises(ValueError, match="active_rows names 'emb', whose gradient"):
        lazy.update({**params, "emb": rows}, state, params, **active)


def test_a_state_that_is_not_kept_by_row_is_an_error():
    params = {"emb": jnp.ones((4, 2))}
    factored = optax.adafactor(0.1, min_dim_size_to_factor=1)
    lazy = ot.lazy_rows(factored, tables="emb", moments="freeze")
    with pytest.raises(ValueError, match=r"works row by row, .* 'emb' of 4 rows"):
        lazy.update(params, lazy.init(params), params)


@pytest.mark.parametrize("shape", [(4, 3), (5, 2)])
def test_rows_for_another_table_are_an_error(shape):
    params = {"emb": jnp.ones((4, 2))}
    rows = ot.RowSparse(jnp.asarray([0]), jnp.ones((1, shape[1])), shape[0])
    lazy = ot.lazy_rows(ADAM, tables="emb", moments="freeze")
    with pytest.raises(
        ValueError, match=r"an update of shape .* at 'emb', where params has"
    ):
        lazy.update({"emb": rows}, lazy.init(params), params)


@pytest.mark.parametrize(
    "outside",
    [
        lambda: ot.gradient_dropout(0.5, key=0),
        lambda: ot.lion(0.1),
        lambda: ot.tiger(0.1, accumulate_steps=2),
        lambda: ot.shrink_nonfinite(ADAM),
    ],
)
def test_other_transformations_say_that_they_take_arrays(outside):
    params = {"emb": jnp.ones((4, 2))}
    grads = {"emb": ot.RowSparse(jnp.asarray([0]), jnp.ones((1, 2)), 4)}
    tx = outside()
    with pytest.raises(TypeError, match="'emb' is a RowSparse, which only lazy_rows"):
        tx.update(grads, tx.init(params), params)
