"""Rows that were not looked up rest; dense gradients."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks
from tests.problems import (
    applied,
    assert_same,
    gradients,
    small_tree,
    temp_bytes_of_step,
    values,
)

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

pytestmark = pytest.mark.usefixtures("standard_promotion")
ADAM = optax.adam(0.1, eps=1e-8)


def path(tx, params, grads, **extra):
    """The parameters after every step, and the last state."""
    state, out = tx.init(params), []
    update = jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, params, **extra)
        params = applied(params, updates)
        out.append(params)
    return out, state


def row_sparse(grad):
    """The rows of a dense gradient that are not zero."""
    ids = np.flatnonzero(np.asarray(grad).any(axis=-1)).astype(np.int32)
    return ot.RowSparse.from_lookup(ids, grad[ids], len(grad))


T8_GRADS = [jnp.asarray(g).reshape(2, 1) for g in ([1.0, 2.0], [0.0, 0.0], [-0.5, 0.0])]
T8 = {
    None: (0.8152675126, 0.7811985119, 0.031),
    "decay": (0.8822733168, 0.9000000158, 0.031),
    "freeze": (0.8771360005, 0.9000000158, 0.04),
}


@pytest.mark.parametrize("moments", T8)
def test_vector_t8(moments):
    tx = ADAM if moments is None else ot.lazy_rows(ADAM, tables=".*", moments=moments)
    out, state = path(tx, jnp.ones((2, 1)), T8_GRADS)
    *theta, momentum = T8[moments]
    np.testing.assert_allclose(out[-1][:, 0], theta, rtol=2e-6)
    np.testing.assert_allclose(optax.tree.get(state, "mu")[0], momentum, rtol=1e-5)


def test_vector_t8_with_row_sparse_gradients():
    tx = ot.lazy_rows(ADAM, tables=".*", moments="freeze")
    params, state = jnp.ones((2, 1)), tx.init(jnp.ones((2, 1)))
    for ids, rows in ([0, 1], [1.0, 2.0]), ([], []), ([0], [-0.5]):
        ids = jnp.asarray(ids, jnp.int32)
        rows = jnp.asarray(rows, jnp.float32).reshape(-1, 1)
        updates, state = tx.update(ot.RowSparse(ids, rows, 2), state, params)
        params = applied(params, updates)
    np.testing.assert_allclose(params[:, 0], T8["freeze"][:2], rtol=2e-6)


INNER = {
    "adamw": optax.adamw(0.1, weight_decay=0.5),
    "lion": ot.lion(0.1, weight_decay=0.5),
    "tiger": ot.tiger(0.1, weight_decay=0.5, embeddings="emb"),
    "clipped": optax.chain(optax.clip(0.3), optax.adagrad(0.1)),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
}
each_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
each_mode = pytest.mark.parametrize("moments", ["decay", "freeze"])


@each_mode
@each_inner
def test_with_every_row_touched_it_is_the_inner_optimizer(inner, moments):
    params = small_tree()
    grads = [gradients(params, seed) for seed in range(3)]
    lazy = ot.lazy_rows(inner, tables="emb|layer", moments=moments)
    assert_same(path(lazy, params, grads), path(inner, params, grads), ulps=4)


@each_mode
@each_inner
def test_untouched_rows_rest_and_others_do_not_notice(inner, moments):
    params = small_tree()
    touched = np.arange(16) % 3 == 0
    grads = [gradients(params, seed) for seed in range(3)]
    grads = [{**g, "emb": g["emb"] * touched[:, None]} for g in grads]
    lazy = ot.lazy_rows(inner, tables="emb", moments=moments)
    (*_, got), state = path(lazy, params, grads)
    (*_, want), dense_state = path(inner, params, grads)
    assert_same(got["emb"][~touched], params["emb"][~touched])
    assert_same(got["emb"][touched], want["emb"][touched], ulps=4)
    assert_same({**got, "emb": 0}, {**want, "emb": 0}, ulps=4)
    if moments == "decay":
        assert_same(state, dense_state, ulps=4)


@each_inner
def test_frozen_state_rows_keep_every_bit(inner):
    params = small_tree()
    lazy = ot.lazy_rows(inner, tables="emb", moments="freeze")
    _, state = path(lazy, params, [gradients(params)])
    grads = {**gradients(params, 2), "emb": jnp.zeros((16, 8)).at[3].set(1.0)}
    _, after = jax.jit(lazy.update)(grads, state, params)
    for before, now in zip(*map(jax.tree.leaves, (state, after)), strict=True):
        if before.shape == (16, 8):
            kept = np.arange(16) != 3
            assert_same(now[kept], before[kept])
            assert (now[3] != before[3]).any()


@each_inner
def test_row_sparse_equals_dense(inner):
    params = small_tree()
    rng = np.random.default_rng(3)
    lazy = ot.lazy_rows(inner, tables="emb", moments="freeze")
    dense_grads, sparse_grads = [], []
    for seed in range(4):
        keep = (rng.random((16, 1)) < 0.4).astype(np.float32)
        grad = gradients(params, seed)
        dense_grads.append({**grad, "emb": grad["emb"] * keep})
        sparse_grads.append({**grad, "emb": row_sparse(dense_grads[-1]["emb"])})
    want, dense_state = path(lazy, params, dense_grads)
    got, state = path(lazy, params, sparse_grads)
    assert_same(got, want, ulps=8)
    assert_same(state, dense_state, ulps=8)


def test_row_sparse_with_repeated_indices_and_padding():
    lazy = ot.lazy_rows(ADAM, tables="emb", moments="freeze")
    params = {"emb": values((6, 2), jnp.float32, 1)}
    ids, rows = jnp.asarray([4, 6, 1, 4, 6]), values((5, 2), jnp.float32, 2)
    sparse = {"emb": ot.RowSparse(ids, rows, 6)}
    dense = {"emb": jnp.zeros((6, 2)) + sparse["emb"]}
    assert_same(
        path(lazy, params, [sparse] * 2), path(lazy, params, [dense] * 2), ulps=4
    )


def test_an_empty_batch_moves_nothing():
    lazy = ot.lazy_rows(INNER["adamw"], tables="emb", moments="freeze")
    params = {"emb": jnp.ones((6, 2))}
    empty = ot.RowSparse(jnp.zeros(0, jnp.int32), jnp.zeros((0, 2)), 6)
    (after,), _ = path(lazy, params, [{"emb": empty}])
    assert_same(after, params)


def test_a_narrow_table_keeps_wide_moments():
    lazy = ot.lazy_rows(
        optax.adam(0.1, mu_dtype=jnp.float32), tables="emb", moments="freeze"
    )
    params = {"emb": jnp.ones((6, 2), jnp.bfloat16)}
    grad = ot.RowSparse(jnp.asarray([3]), jnp.ones((1, 2), jnp.bfloat16), 6)
    (after,), state = path(lazy, params, [{"emb": grad}])
    assert after["emb"].dtype == jnp.bfloat16
    assert float(after["emb"][3, 0]) == pytest.approx(0.9, rel=1e-2)
    assert optax.tree.get(state, "mu")["emb"].dtype == jnp.float32


@pytest.mark.parametrize(
    "ids",
    [
        [2],
        [[2, 2], [2, 2]],
        [2, 4],
        np.asarray([False, False, True, False]),
        [],
    ],
    ids=str,
)
@pytest.mark.parametrize("compiled", [False, True])
def test_active_rows_decide_instead_of_the_gradient(ids, compiled):
    lazy = ot.lazy_rows(optax.sgd(1.0), tables="emb")
    params = {"emb": jnp.ones((4, 2)), "w": jnp.ones(2)}
    update = jax.jit(lazy.update) if compiled else lazy.update
    rows = {"emb": np.asarray(ids, bool if np.asarray(ids).dtype == bool else int)}
    updates, _ = update(params, lazy.init(params), params, active_rows=rows)
    moved = [0.0, 0.0, float(len(ids) > 0), 0.0]
    assert (-updates["emb"][:, 0]).tolist() == moved
    assert updates["w"].tolist() == [-1.0, -1.0]


def test_a_row_is_active_though_its_gradient_is_zero():
    lazy = ot.lazy_rows(ot.lion(0.5, weight_decay=0.5), tables="emb")
    params = {"emb": jnp.ones((3, 1))}
    zeros = jax.tree.map(jnp.zeros_like, params)
    extra = {"active_rows": {"emb": jnp.asarray([1])}}
    updates, _ = lazy.update(zeros, lazy.init(params), params, **extra)
    assert updates["emb"][:, 0].tolist() == [0.0, -0.25, 0.0]


def test_tables_without_active_rows_keep_the_zero_test():
    lazy = ot.lazy_rows(optax.sgd(1.0), tables="emb")
    params = {"emb_a": jnp.ones((2, 1)), "emb_b": jnp.ones((2, 1))}
    grads = {"emb_a": jnp.ones((2, 1)), "emb_b": jnp.asarray([[0.0], [1.0]])}
    extra = {"active_rows": {"emb_a": [0]}}
    updates, _ = lazy.update(grads, lazy.init(params), params, **extra)
    assert updates["emb_a"][:, 0].tolist() == [-1.0, 0.0]
    assert updates["emb_b"][:, 0].tolist() == [0.0, -1.0]


@each_mode
def test_multi_steps_touches_what_any_of_its_steps_touched(moments):
    lazy = ot.lazy_rows(INNER["adamw"], tables="emb", moments=moments)
    multi: Any = optax.MultiSteps(lazy, every_k_schedule=2)
    params = {"emb": jnp.ones((4, 1))}
    state = multi.init(params)
    for row in 0, 2:
        grads = {"emb": jnp.zeros((4, 1)).at[row].set(1.0)}
        updates, state = multi.update(grads, state, params)
    assert (updates["emb"][:, 0] != 0).tolist() == [True, False, True, False]


@each_mode
def test_inside_chain_partition_and_masked(moments):
    params = small_tree()
    grads = {**gradients(params), "emb": gradients(params)["emb"].at[5:].set(0.0)}
    lazy = ot.lazy_rows(INNER["adamw"], tables="emb", moments=moments)
    (want,), _ = path(lazy, params, [grads])
    labels = ot.label_by_path({"emb": "lazy"}, default="dense")
    apart = optax.partition({"lazy": lazy, "dense": INNER["adamw"]}, labels)
    for tx in optax.chain(optax.identity(), lazy), apart:
        assert_same(path(tx, params, [grads])[0][0], want, ulps=4)
    # And the other way round: an optimizer that is itself in parts.
    inner = optax.partition({"lazy": INNER["adamw"], "dense": optax.sgd(0.1)}, labels)
    lazy = ot.lazy_rows(inner, tables="emb", moments=moments)
    (got,), _ = path(lazy, params, [grads])
    assert_same(got["emb"], want["emb"], ulps=4)


@each_mode
def test_active_rows_are_named_by_path_or_laid_out_like_parameters(moments):
    params = {"a": {"emb": jnp.ones((3, 1))}, "emb": jnp.ones((2, 1))}
    grads = jax.tree.map(jnp.zeros_like, params)
    lazy = ot.lazy_rows(ot.lion(0.5, weight_decay=0.5), tables="emb", moments=moments)
    state = lazy.init(params)
    flat = {"a/emb": jnp.asarray([1], jnp.uint8), "emb": []}
    nested = {"a": {"emb": jnp.asarray([1], jnp.int16)}, "emb": []}
    for rows in flat, nested:
        updates: Any = lazy.update(grads, state, params, active_rows=rows)[0]
        assert updates["a"]["emb"].tolist() == [[0.0], [-0.25], [0.0]]
        assert not updates["emb"].any()


@each_mode
def test_two_lazy_optimizers_side_by_side_share_active_rows(moments):
    params = {"k": jnp.ones((3, 1)), "emb": jnp.ones((2, 1))}
    lazy = lambda table: ot.lazy_rows(
        ot.lion(0.5, weight_decay=0.5), tables=table, moments=moments
    )
    labels = ot.label_by_path({"k": "k", "emb": "emb"})
    tx = optax.partition({"k": lazy("k"), "emb": lazy("emb")}, labels)
    grads = jax.tree.map(jnp.zeros_like, params)
    rows = {"k": jnp.asarray([2]), "emb": jnp.asarray([0])}
    updates: Any = tx.update(grads, tx.init(params), params, active_rows=rows)[0]
    assert updates["k"][:, 0].tolist() == [0.0, 0.0, -0.25]
    assert updates["emb"][:, 0].tolist() == [-0.25, 0.0]


@pytest.mark.parametrize("compiled", [False, True])
def test_row_sparse_gradients_go_through_partition_and_labels(compiled):
    params = {"emb": jnp.ones((4, 1)), "w": jnp.ones(2)}
    grads = {
        "emb": ot.RowSparse.from_lookup(jnp.asarray([2, 2]), jnp.ones((2, 1)), 4),
        "w": jnp.ones(2),
    }
    lazy = ot.lazy_rows(optax.sgd(0.5), tables="emb", moments="freeze")
    labels = ot.label_by_path({"emb$": "lazy"}, default="rest")
    masked = optax.masked(lazy, lambda tree: ot.select(tree, "emb"))
    parted = optax.partition({"lazy": lazy, "rest": optax.sgd(0.25)}, labels)
    for tx, w in (masked, 2.0), (parted, 0.75):
        state = tx.init(params)
        step = lambda grads, tx=tx, state=state: applied(
            params, tx.update(grads, state, params)[0]
        )
        after: Any = (jax.jit(step) if compiled else step)(grads)
        assert after["emb"][:, 0].tolist() == [1.0, 1.0, 0.0, 1.0]
        assert after["w"].tolist() == [w, w]


def test_an_entry_of_a_vector_is_a_row():
    lazy = ot.lazy_rows(optax.sgd(1.0, momentum=0.5), tables=".*", moments="freeze")
    (first, second), _ = path(lazy, jnp.ones(2), [jnp.ones(2), jnp.asarray([0.0, 1.0])])
    assert first.tolist() == [0.0, 0.0] and second.tolist() == [0.0, -1.5]


def test_a_compiled_sparse_step_holds_three_blocks_of_rows_and_copies_no_table():
    lazy = ot.lazy_rows(optax.adam(0.1), tables="emb", moments="freeze")
    params = {"emb": jnp.ones((8192, 64))}
    rows = ot.RowSparse(jnp.arange(256) // 2, jnp.ones((256, 64)), 8192)
    blocks = temp_bytes_of_step(lazy, params, {"emb": rows}) / rows.values.nbytes
    assert blocks < 3.3
