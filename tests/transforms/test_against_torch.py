"""Trajectories of other people's optimizers: lion-pytorch, and torch's SparseAdam."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.problems import applied

# Made by the script beside it.
STORED = np.load(Path(__file__).parent / "data" / "torch_optimizers.npz")
LEAVES = ("matrix", "vector")


def stored(*keys):
    return STORED["/".join(keys)]


def assert_close(got, want, names):
    """Equal up to the rounding of a few steps in float32."""
    for name, left, right in zip(names, got, want, strict=True):
        np.testing.assert_allclose(left, right, rtol=3e-6, atol=1e-6, err_msg=name)


def test_the_references_hold_what_they_should():
    ids = stored("lazy_adam", "ids")
    assert any(len(set(row)) < len(row) for row in ids.tolist())
    resting = set(range(9)) - set(ids[3:9].ravel().tolist())
    assert resting & set(ids[:3].ravel().tolist())
    assert (
        stored("lazy_adam", "params")[:, 7:] == stored("lazy_adam", "start")[7:]
    ).all()


@pytest.mark.parametrize("setting", ["default", "language"])
def test_lion_is_lion_pytorch(setting):
    b1, b2, rate, decay = stored("lion", setting, "setting").tolist()
    of = lambda kind: {name: stored("lion", setting, name, kind) for name in LEAVES}
    params = jax.tree.map(jnp.asarray, of("start"))
    tx: Any = ot.lion(rate, b1, b2, weight_decay=decay)
    state = tx.init(params)
    grads = of("grads")
    for step in range(len(grads["matrix"])):
        now = jax.tree.map(lambda g, step=step: jnp.asarray(g[step]), grads)
        updates, state = tx.update(now, state, params)
        params = applied(params, updates)
        for got, kind in (params, "params"), (state[0].mu, "mu"):
            want = [of(kind)[name][step] for name in LEAVES]
            assert_close([got[name] for name in LEAVES], want, LEAVES)


def as_dense(ids, cotangents):
    zero = jnp.zeros((9, 3))
    return zero.at[ids].add(cotangents), {}


def as_named(ids, cotangents):
    grad, _ = as_dense(ids, cotangents)
    return grad, {"active_rows": {"emb": ids}}


def as_rows(ids, cotangents):
    return ot.RowSparse.from_lookup(ids, cotangents, 9), {}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("form", [as_dense, as_named, as_rows])
def test_frozen_lazy_adam_is_sparse_adam(form):
    rate, epsilon = stored("lazy_adam", "setting").tolist()
    adam = optax.adam(rate, eps=epsilon)
    tx: Any = ot.lazy_rows(adam, tables="emb", moments="freeze")
    params = {"emb": jnp.asarray(stored("lazy_adam", "start"))}
    state = tx.init(params)
    for step, ids in enumerate(stored("lazy_adam", "ids")):
        rows = jnp.asarray(stored("lazy_adam", "cotangents")[step])
        grad, extra = form(jnp.asarray(ids), rows)
        updates, state = tx.update({"emb": grad}, state, params, **extra)
        params = applied(params, updates)
        found = params["emb"], state[0].mu["emb"], state[0].nu["emb"]
        names = "params", "mu", "nu"
        want = [stored("lazy_adam", name)[step] for name in names]
        assert_close(found, want, names)
