"""Rows that rest cost no memory of a table's size."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks
from tests.problems import temp_bytes_of_step

ot = cast(Any, optaxtricks)

pytestmark = pytest.mark.usefixtures("standard_promotion")
SHAPE = (512, 256)
INNER = {"adam": optax.adam(0.1), "lion": ot.lion(0.1), "sgd": optax.sgd(0.1, 0.9)}


@pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
def test_a_dense_gradient_needs_no_other_temporaries_than_inner(inner):
    params = {"emb": jax.ShapeDtypeStruct(SHAPE, jnp.float32)}
    lazy = ot.lazy_rows(inner, tables="emb")
    table = 4 * np.prod(SHAPE)
    more = temp_bytes_of_step(lazy, params, params)
    assert more - temp_bytes_of_step(inner, params, params) < 0.01 * table


def test_with_moments_that_freeze_a_norm_is_that_of_all_rows():
    # Another leaf moves by a norm of what a table's resting rows would have done.
    inner = optax.chain(optax.scale_by_adam(), optax.clip_by_global_norm(1.0))
    params = {"emb": jnp.ones((6, 3)), "w": jnp.ones(3)}
    state = ot.lazy_rows(inner, tables="emb", moments="freeze").init(params)
    grads = {"emb": jnp.zeros((6, 3)).at[2].set(1.0), "w": jnp.ones(3)}
    for _ in range(2):
        plain, _ = jax.jit(inner.update)(grads, state, params)
        lazy = ot.lazy_rows(inner, tables="emb", moments="freeze")
        updates, state = jax.jit(lazy.update)(grads, state, params)
        np.testing.assert_array_equal(updates["w"], plain["w"])
        grads = {"emb": jnp.zeros((6, 3)).at[4].set(1.0), "w": jnp.ones(3)}


@pytest.mark.parametrize("columns", [256, 259, 20])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_row_with_one_entry_is_touched_wherever_it_stands(columns, dtype):
    spots = np.eye(columns + 1, columns, dtype=np.float32)  # none in the last row
    spots[1] = np.where(spots[1], np.nan, -spots[1])
    grads = {"emb": jnp.asarray(spots, dtype)}
    # What comes of a zero says whether its row moved.
    tx = ot.lazy_rows(optax.add_decayed_weights(1.0), tables="emb")
    params = {"emb": jnp.ones_like(grads["emb"])}
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    moved = np.asarray(updates["emb"], np.float32).any(axis=1)
    np.testing.assert_array_equal(moved, np.arange(columns + 1) < columns)
