"""One program: traced once, and the same numbers however it is run."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import pytest

from tests.cases import CASES, Case
from tests.problems import STEPS, assert_same, gradients

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
Run = tuple[list[Any], list[Any]]


def _unrolled(case: Case, params: Any, update: Any) -> Run:
    """Updates and states of a few steps from a fresh state."""
    states, outputs = [case.make(params).init(params)], []
    for seed in range(STEPS):
        updates, state = update(
            gradients(params, seed), states[-1], params, **case.extra_args(params)
        )
        states.append(state)
        outputs.append(updates)
    return outputs, states


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@each_case
def test_one_trace_serves_every_step_and_every_call_style(case: Case) -> None:
    chex.clear_trace_counter()
    params = case.params(jnp.float32)
    update = case.make(params).update
    compiled = jax.jit(chex.assert_max_traces(update, n=1))
    outputs, states = _unrolled(case, params, compiled)
    eager_outputs, eager_states = _unrolled(case, params, update)
    assert_same((outputs, states), (eager_outputs, eager_states), ulps=case.ulps)

    # In a scan, and for a batch of states that stand at different steps.
    extra = case.extra_args(params)
    stacked = _stack([gradients(params, seed) for seed in range(STEPS)])
    step = lambda grads, state: update(grads, state, params, **extra)
    scan = lambda state, grads: step(grads, state)[::-1]
    last, scanned = jax.jit(lambda *args: jax.lax.scan(scan, *args))(states[0], stacked)
    assert_same((last, scanned), (states[-1], _stack(outputs)), ulps=case.ulps)
    batched = jax.jit(
        jax.vmap(lambda grads, state: update(grads, state, params, **extra))
    )
    batch = batched(stacked, _stack(states[:-1]))
    assert_same(batch, (_stack(outputs), _stack(states[1:])), ulps=case.ulps)


@each_case
def test_lowers_for_every_platform(case: Case) -> None:
    params = case.params(jnp.bfloat16)
    tx = case.make(params)
    state = jax.eval_shape(tx.init, params)
    traced = jax.jit(tx.update).trace(params, state, params, **case.extra_args(params))
    for platform in ("cpu", "cuda", "tpu"):
        assert traced.lower(lowering_platforms=(platform,)).as_text()


@each_case
def test_arrays_live_in_the_state_not_in_the_program(case: Case) -> None:
    params = case.params(jnp.float32)
    tx = case.make(params)
    traced = jax.jit(tx.update).trace(
        params, tx.init(params), params, **case.extra_args(params)
    )
    assert sum(jnp.size(const) for const in traced.jaxpr.consts) <= 16
