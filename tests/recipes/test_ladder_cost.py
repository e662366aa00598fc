"""What a compiled ladder step computes, and what makes it compute more."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot
from tests.problems import applied, assert_same

WIDTH, LAYERS, BATCH = 64, 6, 128


def _deep_params() -> Any:
    deep = np.random.default_rng(0).normal(size=(LAYERS, WIDTH, WIDTH)) / WIDTH**0.5
    layers = {str(i): jnp.asarray(w, jnp.float32) for i, w in enumerate(deep)}
    return {"backbone": layers, "side": jnp.zeros((WIDTH, 1))}


def _deep_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    taps = [x]
    for i in range(LAYERS):
        taps.append(jnp.tanh(taps[-1] @ params["backbone"][str(i)]))
    out = sum(jax.lax.stop_gradient(tap) @ params["side"] for tap in taps)
    # The whole network without the stop, so that every leaf has a gradient.
    return jnp.square(out - y).mean() + jnp.square(taps[-1]).mean()


def _compiled(differ: Any, tx: Any) -> Any:
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        _, grads = differ(params, x, y)
        updates, state = tx.update(grads, state, params)
        return applied(params, updates), state

    params = _deep_params()
    data = jnp.zeros((BATCH, WIDTH)), jnp.zeros((BATCH, 1))
    fast = jax.jit(step, donate_argnums=(0, 1))
    return fast.lower(params, tx.init(params), *data).compile()


def _flops(differ: Any, tx: Any) -> float:
    return _compiled(differ, tx).cost_analysis()["flops"]


def test_who_reads_frozen_gradients_brings_the_backward_pass_back() -> None:
    clip, sgd, side = optax.clip_by_global_norm(1.0), optax.sgd(0.1), "^side"
    all_leaves = jax.value_and_grad(_deep_loss)
    side_only = ot.side_value_and_grad(_deep_loss, side=side)
    inside = ot.ladder(optax.chain(clip, sgd), side=side)
    outside = optax.chain(clip, ot.ladder(sgd, side=side))
    forward = 2 * BATCH * LAYERS * WIDTH**2
    cheap = [_flops(all_leaves, inside), _flops(side_only, inside)]
    dear = [_flops(all_leaves, outside), _flops(all_leaves, optax.chain(clip, sgd))]
    # Forward alone; backward adds two products a layer, but one at the first.
    assert forward < min(cheap) <= max(cheap) < 1.25 * forward
    assert min(dear) > 2.7 * forward


def test_a_donated_step_leaves_frozen_parameters_where_they_are() -> None:
    differ = ot.side_value_and_grad(_deep_loss, side="^side")
    compiled = _compiled(differ, ot.ladder(optax.sgd(0.1), side="^side"))
    # What the program gives back: frozen parameters as they came, by name.
    result = re.findall(r"ROOT %tuple\S* = .*", compiled.as_text())[-1]
    assert len(re.findall(r"%params__backbone__\w+", result)) == LAYERS
    assert "%params__side__" not in result
    needed = compiled.memory_analysis()
    assert needed.alias_size_in_bytes >= 4 * LAYERS * WIDTH**2


def test_side_value_and_grad_is_value_and_grad_of_a_part() -> None:
    params = _deep_params()
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.normal(size=(5, n)), jnp.float32) for n in (WIDTH, 1))
    value, grads = jax.jit(jax.value_and_grad(_deep_loss))(params, x, y)
    got = jax.jit(ot.side_value_and_grad(_deep_loss, side="^side"))(params, x, y=y)
    assert_same(got, (value, ot.split(grads, "^side")[0]), ulps=8)
    with_aux = lambda params, x: (_deep_loss(params, x, y), {"x": x})
    differ = ot.side_value_and_grad(with_aux, side="^side", has_aux=True)
    (again, aux), same = jax.jit(differ)(params, x)
    assert_same(((again, same), aux["x"]), (got, x), ulps=8)
