"""Zeros that are seen are zeros, and those of Optax's masks are seen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optaxtricks._core.zero_flow import zero_outputs

ZERO: dict[str, Callable[[Any], Any]] = {
    "zeros": lambda x: jnp.zeros_like(x),
    "negative zeros": lambda x: jnp.full_like(x, -0.0),
    "times": lambda x: jnp.zeros_like(x) * x,
    "over": lambda x: jnp.zeros_like(x) / x,
    "sum": lambda x: jnp.zeros_like(x) + jnp.zeros_like(x) - jnp.zeros_like(x),
    "cast and moved": lambda x: -jnp.zeros_like(x).T.astype(jnp.bfloat16).reshape(-1),
    "chosen": lambda x: jnp.where(x > 0, jnp.zeros_like(x), -jnp.zeros_like(x)),
    "called": lambda x: jax.jit(lambda z, y: z * y)(jnp.zeros_like(x), x),
    "both branches": lambda x: jax.lax.cond(
        x[0, 0] > 0, lambda y: jnp.zeros_like(y), lambda y: 0 * y, x
    ),
    "behind a barrier": lambda x: jax.lax.optimization_barrier((x, jnp.zeros_like(x)))[
        1
    ],
    "a constant array": lambda x: x * np.zeros((2, 3), np.float32),
    "a power": lambda x: jnp.zeros_like(x) ** 3,
}
NOT_ZERO: dict[str, Callable[[Any], Any]] = {
    "the input": lambda x: x,
    "ones": lambda x: jnp.ones_like(x),
    "plus": lambda x: jnp.zeros_like(x) + x,
    "chosen": lambda x: jnp.where(x > 0, jnp.zeros_like(x), x),
    "the exponential of zeros": lambda x: jnp.exp(jnp.zeros_like(x)),
    "a power of zeros": lambda x: jax.lax.integer_pow(jnp.zeros_like(x), 0),
    "an inverse of zeros": lambda x: jax.lax.integer_pow(jnp.zeros_like(x), -2),
    "one branch": lambda x: jax.lax.cond(
        x[0, 0] > 0, lambda y: jnp.zeros_like(y), lambda y: y, x
    ),
    "called": lambda x: jax.jit(lambda z, y: (z, z + y))(jnp.zeros_like(x), x)[1],
    "behind a barrier": lambda x: jax.lax.optimization_barrier((x, jnp.zeros_like(x)))[
        0
    ],
    "carried": lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y + 1, x * 0),
    "a constant array": lambda x: x * np.eye(2, 3, dtype=np.float32),
}
X = jnp.asarray([[1.0, -2.0, 0.5], [3.0, -0.25, 2.0]])


@pytest.mark.parametrize("function", ZERO.values(), ids=list(ZERO))
def test_zeros_are_seen(function: Callable[[Any], Any]) -> None:
    assert not np.any(np.asarray(function(X), np.float32))
    assert zero_outputs(jax.make_jaxpr(function)(X)) == [True]


@pytest.mark.parametrize("function", NOT_ZERO.values(), ids=list(NOT_ZERO))
def test_other_values_are_not_taken_for_zeros(function: Callable[[Any], Any]) -> None:
    assert np.any(function(X)) or np.any(function(-X))
    assert zero_outputs(jax.make_jaxpr(function)(X)) == [False]


def test_each_output_is_judged_by_itself() -> None:
    both = lambda x: (x, 0 * x, jnp.zeros(3))
    assert zero_outputs(jax.make_jaxpr(both)(X)) == [False, True, True]
