"""What acts once a window keeps still in between."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import pytest

import optaxtricks
from tests.problems import assert_same, gradients, small_tree

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)


@pytest.mark.parametrize("k", [1, 3])
def test_acts_like_the_inner_optimizer_once_a_window(k):
    params, inner = small_tree(), optax.sgd(0.5, momentum=0.5)
    tx = ot.at_window_end(inner, accumulate_steps=k)
    state, alone = tx.init(params), inner.init(params)
    for step in range(3 * k):
        grads = gradients(params, seed=step)
        updates, after = jax.jit(tx.update)(grads, state, params)
        if (step + 1) % k:
            assert not any(u.any() for u in jax.tree.leaves(updates))
            assert_same(after.inner, state.inner)
        else:
            want, alone = jax.jit(inner.update)(grads, alone, params)
            assert_same((updates, after.inner), (want, alone))
        state = after


def test_nan_inside_a_window_is_not_seen():
    tx = ot.at_window_end(optax.trace(0.5), accumulate_steps=2)
    updates, state = tx.update(jnp.full(2, jnp.nan), tx.init(jnp.ones(2)))
    assert updates.tolist() == [0.0, 0.0]
    assert tx.update(jnp.ones(2), state)[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accumulate_steps": 0}, ValueError, "accumulate_steps must be at least 1"),
        ({"accumulate_steps": True}, TypeError, "accumulate_steps must be an int"),
        ({"inner": None}, TypeError, "inner must be an optax.GradientTransformation"),
    ],
    ids=str,
)
def test_bad_arguments(options, error, message):
    arguments = {"inner": optax.sgd(1.0), "accumulate_steps": 2, **options}
    with pytest.raises(error, match=message):
        ot.at_window_end(**arguments)
