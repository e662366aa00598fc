"""A function run once more with some of its results given."""

import jax
import jax.numpy as jnp
import pytest

from optaxtricks._core.known_results import given_results


def running(x, state):
    new = state["mean"] + x
    return new * 2, {"mean": new, "count": state["count"] + 1}


ARGS = (jnp.array([1.0, 2.0]), {"mean": jnp.array([3.0, 4.0]), "count": jnp.array(0)})
# The update, the count, the mean.
MEAN = 2


@pytest.mark.parametrize("function", [running, jax.jit(running)], ids=["plain", "jit"])
def test_what_hangs_on_a_given_result_is_computed_from_it(function):
    update, state = given_results(function, ARGS, {MEAN: jnp.array([10.0, 20.0])})
    assert update.tolist() == [20.0, 40.0]
    assert state["mean"].tolist() == [10.0, 20.0] and int(state["count"]) == 1


def test_without_given_results_it_is_the_function():
    update, state = given_results(running, ARGS, {})
    assert update.tolist() == [8.0, 12.0]
    assert state["mean"].tolist() == [4.0, 6.0]


def test_a_result_that_is_an_argument_stays_it_for_what_hangs_on_it():
    update, kept = given_results(lambda x: (x + 1, x), (jnp.ones(()),), {1: ARGS[0]})
    assert float(update) == 2.0 and float(kept) == 1.0
