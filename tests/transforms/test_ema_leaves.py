"""Moving averages of odd leaves, in narrow dtypes, and beside Optax and Flax."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optaxtricks
from tests.problems import (
    NnxNet,
    applied,
    assert_same,
    gradients,
    layout,
    pure,
    temp_bytes_of_step,
    values,
)

# A checker takes results of `update` for any tree.
ot = cast(Any, optaxtricks)


@pytest.mark.skipif(not hasattr(nnx, "EMA"), reason="this Flax has no EMA")
def test_agrees_with_optax_and_with_flax():
    params = {"w": values((4, 3), jnp.float32, 0)}
    tx: Any = optax.chain(optax.sgd(0.1), ot.ema_params(0.9))
    state, theirs = tx.init(params), params
    flax: Any = nnx.EMA(nnx.State({"w": nnx.Param(jnp.copy(params["w"]))}), decay=0.9)
    for seed in range(5):
        updates, state = tx.update(gradients(params, seed), state, params)
        params = applied(params, updates)
        theirs = optax.incremental_update(params, theirs, 0.1)
        flax.update(nnx.State({"w": nnx.Param(params["w"])}))
    assert_same(state[1].ema, theirs, ulps=4)
    np.testing.assert_allclose(state[1].ema["w"], flax.params["w"][...], rtol=1e-6)


def test_averages_what_apply_updates_leaves_and_not_the_sum_before_rounding():
    tx = ot.ema_params(0.75, dtype=jnp.float32)
    params, update = values((300,), jnp.bfloat16, 0), values((300,), jnp.bfloat16, 1)
    after = np.asarray(applied(params, update)).astype(np.float64)
    want = 0.75 * np.asarray(params).astype(np.float64) + 0.25 * after
    for step in tx.update, jax.jit(tx.update):
        _, state = step(update, tx.init(params), params)
        assert state.ema.dtype == jnp.float32
        np.testing.assert_allclose(state.ema, want, atol=3e-7)


def test_a_float32_shadow_follows_where_a_bfloat16_one_stands_still():
    shadows = {}
    for dtype in None, jnp.bfloat16:
        tx = ot.ema_params(0.999, dtype=dtype)
        start = jnp.ones(4, jnp.bfloat16)
        step = lambda state, _, tx=tx, start=start: (
            tx.update(start, state, start)[1],  # the parameters are now 2
            None,
        )
        state, _ = jax.lax.scan(step, tx.init(start), length=2000)
        shadows[dtype] = np.asarray(state.ema).astype(float)
    np.testing.assert_allclose(shadows[None], 2 - 0.999**2000, rtol=1e-5)
    assert (shadows[jnp.bfloat16] == 1).all()


def test_the_dtype_of_the_average():
    kinds = "bfloat16", "float16", "float32", "complex64"
    params = {kind: jnp.ones(2, kind) for kind in kinds}
    for dtype, narrow in [
        (None, "float32"),
        (jnp.float32, "float32"),
        (jnp.bfloat16, "bfloat16"),
        (jnp.float16, "float16"),
    ]:
        tx = ot.ema_params(0.5, dtype=dtype)
        _, state = tx.update(params, tx.init(params), params)
        got = [state.ema[kind].dtype for kind in kinds]
        assert got == [narrow, narrow, narrow, "complex64"]
    with jax.enable_x64(True):
        tx = ot.ema_params(0.5, dtype=jnp.float64)
        assert tx.init(jnp.ones(2, jnp.complex64)).ema.dtype == jnp.complex128
        wide = jnp.ones(2, jnp.float64)
        assert ot.ema_params(0.5).init(wide).ema.dtype == jnp.float64
        assert ot.ema_params(0.5, dtype="float32").init(wide).ema.dtype == jnp.float32


def test_complex_parameters_are_averaged_in_both_parts():
    path = [values((5,), jnp.complex64, seed) for seed in range(2)]
    tx = ot.ema_params(0.75)
    _, state = tx.update(path[1] - path[0], tx.init(path[0]), path[0])
    want = 0.75 * np.asarray(path[0]) + 0.25 * np.asarray(path[1])
    np.testing.assert_allclose(state.ema, want, rtol=1e-5)


def test_integer_and_boolean_leaves_are_copied_when_an_average_is_taken():
    params = {
        "count": jnp.asarray([5], jnp.int32),
        "flag": jnp.asarray([True, False]),
        "w": jnp.ones(1),
        "unmoved": jnp.asarray([7], jnp.int32),
    }
    updates = {
        "count": jnp.asarray([2], jnp.int32),
        "flag": jnp.asarray([False, True]),
        "w": jnp.ones(1),
        "unmoved": np.zeros(1, jax.dtypes.float0),
    }
    tx = ot.ema_params(1.0, dtype=jnp.float32, every=2)
    state = tx.init(params)
    assert_same(state.ema, params)
    for count in 5, 7:
        _, eager = tx.update(updates, state, params)
        _, state = jax.jit(tx.update)(updates, state, params)
        assert_same(eager, state)
        assert layout(state.ema) == layout(params)
        assert state.ema["count"].tolist() == [count]
        assert state.ema["flag"].tolist() == [True, count == 7]
        assert state.ema["w"].tolist() == [1.0]
        assert state.ema["unmoved"].tolist() == [7]


def test_no_buffer_of_the_parameters_or_updates_is_shared():
    params = {"w": jnp.ones(50), "count": jnp.arange(50)}
    updates = {"w": jnp.zeros(50), "count": np.zeros(50, jax.dtypes.float0)}
    tx = ot.ema_params(0.0)
    pointers = lambda tree: {x.unsafe_buffer_pointer() for x in jax.tree.leaves(tree)}
    for init, update in (tx.init, tx.update), (jax.jit(tx.init), jax.jit(tx.update)):
        state = init(params)
        _, after = update(updates, state, params)
        for average in state.ema, after.ema:
            assert_same(average, params)
            assert not pointers(average) & pointers([params, updates["w"]])


def test_row_sparse_updates_reach_the_average():
    params = {"emb": jnp.ones((4, 2), jnp.float32)}
    rows = ot.RowSparse(jnp.array([1, 1]), jnp.ones((2, 2)), 4)
    tx = ot.ema_params(0.5)
    updates, state = jax.jit(tx.update)({"emb": rows}, tx.init(params), params)
    assert isinstance(updates["emb"], ot.RowSparse)
    assert state.ema["emb"].tolist() == [[1, 1], [2, 2], [1, 1], [1, 1]]


def test_found_by_name_in_a_chain_and_put_into_an_nnx_model():
    model = NnxNet()
    tx = optax.chain(
        optax.add_decayed_weights(0.1),
        optax.partition(
            {"all": optax.sgd(0.5)}, lambda tree: jax.tree.map(lambda _: "all", tree)
        ),
        ot.ema_params(0.5),
    )
    start = jax.tree.map(jnp.copy, pure(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    after = pure(nnx.state(model, nnx.Param))
    target = nnx.clone(model)
    nnx.update(target, optax.tree.get(optimizer.opt_state, "ema"))
    got = pure(nnx.state(target, nnx.Param))
    halves = jax.tree.map(lambda a, b: (a + b) / 2, start, after)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(halves), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_a_compiled_step_needs_no_temporary_of_the_parameters_size():
    params = {"w": jnp.ones((512, 512)), "b": jnp.ones(1024)}
    tx = optax.chain(optax.sgd(0.1), ot.ema_params(0.99, debias=True, every=2))
    assert temp_bytes_of_step(tx, params, params) < 4096
