"""Functions of their inputs: no hidden memory, nothing changed in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import CASES, Case
from tests.problems import assert_same, gradients

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@each_case
def test_same_inputs_give_the_same_outputs_twice(case: Case) -> None:
    params = case.params(jnp.float32)
    tx, extra = case.make(params), case.extra_args(params)
    grads, state = gradients(params), tx.init(params)
    first = tx.update(grads, state, params, **extra)
    tx.update(gradients(params, seed=5), first[1], params, **extra)
    assert_same(tx.update(grads, state, params, **extra), first)
    assert_same(tx.init(params), state)
    assert_same(case.make(params).update(grads, state, params, **extra), first)


@each_case
def test_a_factory_serves_a_second_set_of_parameters(case: Case) -> None:
    params = case.params(jnp.float32)
    tx, extra = case.make(params), case.extra_args(params)
    other = gradients(params, seed=9)
    grads = gradients(params)
    used = tx.update(grads, tx.init(params), params, **extra)
    again = tx.update(grads, tx.init(other), other, **extra)
    fresh = case.make(params)
    assert_same(again, fresh.update(grads, fresh.init(other), other, **extra))
    assert_same(used, tx.update(grads, tx.init(params), params, **extra))


@each_case
def test_inputs_are_left_as_they_are(case: Case) -> None:
    params = jax.tree.map(np.array, case.params(jnp.float32))
    arguments = case.arguments(params)
    grads = jax.tree.map(np.array, gradients(params))
    before = jax.tree.map(np.array, (params, grads))
    tx = case.factory(**arguments)
    state = tx.init(params)
    held = jax.tree.map(np.array, state)
    tx.update(grads, state, params, **case.extra_args(params))
    assert_same((params, grads), before)
    assert_same(state, held)
