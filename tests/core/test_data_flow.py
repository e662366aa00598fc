"""Which outputs of a traced function depend on which inputs."""

import jax
import jax.numpy as jnp
import pytest

from optaxtricks._core.data_flow import sources

A, B, C = 1, 2, 4
ALL = A | B | C


def _branches(a, b, c):
    one, two = lambda a, b: (a + 1, b), lambda a, b: (b, b * 2)
    return jax.lax.cond(c > 0, one, two, a, b)


def _scan(a, b, c):
    step = lambda carry, row: ((carry[1], carry[1] + row), row * 2)
    return jax.lax.scan(step, (a, b), jnp.stack([c, c]))


def _while(a, b, c):
    step = lambda carry: (carry[0] + c, carry[1] * 2)
    return jax.lax.while_loop(lambda carry: carry[0] < 9, step, (a, b))


@pytest.mark.parametrize(
    ("function", "want"),
    [
        (lambda a, b, c: (a + b, c, jnp.ones(2)), [A | B, C, 0]),
        (lambda a, b, c: (jnp.zeros_like(a), a.ndim + b), [0, B]),
        (jax.jit(lambda a, b, c: (b, a * c)), [B, A | C]),
        (lambda a, b, c: jax.lax.optimization_barrier((a, b)), [A, B]),
        (_branches, [ALL, B | C]),  # what decides is in all results
        (_scan, [ALL, B | C, C]),  # what a carry takes up in later rounds
        (_while, [A | C, ALL]),  # what decides on the number of rounds
        # What is no call, branch or loop mixes all that goes in.
        (lambda a, b, c: jax.lax.sort((a[None], b[None])), [A | B, A | B]),
    ],
)
def test_marks_of_results(function, want):
    one = jnp.ones(())
    traced = jax.make_jaxpr(function)(one, one, one)
    assert sources(traced, [A, B, C]) == want
