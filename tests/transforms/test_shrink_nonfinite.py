"""Leaves whose gradient is not finite shrink instead of moving."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks
from tests.problems import applied, assert_same, gradients, small_tree

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

INNER = optax.sgd(0.5, momentum=0.5)


def test_finite_gradients_pass_to_the_inner_optimizer():
    params = small_tree()
    tx = ot.shrink_nonfinite(INNER)
    got = tx.update(gradients(params), tx.init(params), params)
    want = INNER.update(gradients(params), INNER.init(params), params)
    assert_same(got, want)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_bad_leaf_moves_toward_its_centre(bad):
    params = {
        "w": jnp.asarray([2.0, -4.0]),
        "gamma": jnp.asarray([1.2]),
        "b": jnp.ones(1),
    }
    grads = {
        "w": jnp.asarray([0.0, bad]),
        "gamma": jnp.asarray([bad]),
        "b": jnp.ones(1),
    }
    tx = ot.shrink_nonfinite(optax.sgd(0.5), shrink=0.99, to_one="gamma")
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    after = applied(params, updates)
    np.testing.assert_allclose(after["w"], [1.98, -3.96], rtol=1e-6)
    np.testing.assert_allclose(after["gamma"], [1.198], rtol=1e-6)
    assert after["b"].tolist() == [0.5]


@pytest.mark.usefixtures("standard_promotion")
def test_the_factor_can_be_injected():
    make = optax.inject_hyperparams(
        ot.shrink_nonfinite, static_args=("inner", "to_one")
    )
    tx = make(inner=optax.sgd(0.5), shrink=0.5)
    params, grads = jnp.full(2, 8.0), jnp.full(2, jnp.nan)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates.tolist() == [-4.0, -4.0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shrink": 1.0}, ValueError, r"shrink must lie in \(0, 1\)"),
        ({"shrink": None}, TypeError, "shrink must be a number"),
        ({"to_one": "x"}, ValueError, "to_one 'x' matches no leaf"),
        ({"inner": None}, TypeError, "inner must be an optax.GradientTransformation"),
    ],
    ids=str,
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ot.shrink_nonfinite(**{"inner": INNER, **options}).init({"w": jnp.ones(2)})


def test_parameters_are_needed():
    tx = ot.shrink_nonfinite(INNER)
    with pytest.raises(ValueError, match="shrink_nonfinite needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
