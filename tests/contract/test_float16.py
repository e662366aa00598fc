"""Exact zeros in float16, of which Adam's usual epsilon makes NaN."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.problems import applied

pytestmark = pytest.mark.usefixtures("standard_promotion")
MASK = np.array([True, False, False, True])
AT = {"w": jnp.asarray([0.5, -0.5, 1.0, 2.0], jnp.float16)}
GRADS = {"w": jnp.asarray([1.0, -2.0, 0.5, 1e-2], jnp.float16)}
FRONT: dict[str, Any] = {
    "keep_entries": lambda inner: optax.chain(ot.keep_entries({"w": MASK}), inner),
    "child_tuning_d": lambda inner: ot.child_tuning_d(
        inner, {"w": MASK}, decay_frozen=True
    ),
    "gradient_dropout": lambda inner: optax.chain(
        ot.gradient_dropout(0.5, key=1), inner
    ),
    "child_tuning_f": lambda inner: ot.child_tuning_f(inner, 0.5, key=1),
}


def run(tx: Any, at: Any, grads: Any, compiled: bool, steps: int = 3) -> list[Any]:
    state, out = tx.init(at), []
    update = jax.jit(tx.update) if compiled else tx.update
    for _ in range(steps):
        updates, state = update(grads, state, at)
        at = applied(at, updates)
        out.append(at)
    return out


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("front", FRONT.values(), ids=FRONT)
def test_the_epsilon_that_the_docstrings_name(front: Any, compiled: bool) -> None:
    bad = run(front(optax.adamw(1e-3)), AT, GRADS, compiled)
    assert np.isnan(bad[-1]["w"]).any()
    for at in run(front(optax.adamw(1e-3, eps=1e-4)), AT, GRADS, compiled):
        assert np.isfinite(at["w"]).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_behind_the_optimizer_a_mask_stops_nan_too(compiled: bool) -> None:
    tx = ot.child_tuning_d(optax.adamw(1e-3), {"w": MASK})
    last: Any = run(tx, AT, GRADS, compiled)[-1]
    assert np.isfinite(last["w"]).all()
    assert (np.asarray(last["w"]) == AT["w"])[~MASK].all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("sign", ["lion", "tiger"])
@pytest.mark.parametrize("k", [None, 2])
def test_mixed_sign_is_adam_in_float32_on_rows_not_seen(
    sign: str, k: Any, dtype: Any
) -> None:
    options: Any = {} if k is None or sign == "lion" else {"accumulate_steps": k}
    tx = ot.mixed_sign(
        0.1, embeddings="emb", sign=sign, adam_learning_rate=0.25, **options
    )
    at = {"emb": jnp.ones((3, 2), dtype), "w": jnp.ones((2, 2), dtype)}
    grads = {"emb": jnp.zeros((3, 2), dtype).at[1].set(0.5), "w": at["w"]}
    out = run(tx, at, grads, compiled=True, steps=4)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (at, grads))
    adam = run(optax.adam(0.25), *wide, compiled=True, steps=4 // (k if options else 1))
    for step in out:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(step))
        assert (step["emb"][0] == 1).all()
    np.testing.assert_allclose(
        np.asarray(out[-1]["emb"], np.float32), adam[-1]["emb"], rtol=2e-2, atol=1e-2
    )
    moments = [x for x in jax.tree.leaves(tx.init(at)) if x.shape == (3, 2)]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}
