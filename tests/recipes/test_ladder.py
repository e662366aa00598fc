"""The side leaves train as alone; the frozen ones rest, and cost nothing."""

import re
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.problems import CONTAINERS, STEPS, applied, assert_same, gradients, layout

DECAYED_ADAM = optax.adamw(0.1, weight_decay=0.5)
standard = pytest.mark.usefixtures("standard_promotion")


def _params() -> Any:
    return {
        "backbone": {"b": jnp.linspace(-1.0, 1.0, 4), "w": jnp.ones((4, 4))},
        "side": {"w": jnp.linspace(-2.0, 3.0, 6).reshape(3, 2)},
    }


def _with_holes(grads: Any) -> Any:
    return ot.split(grads, "^side")[0]


def _state_bytes(tx: Any, params: Any) -> int:
    state = jax.eval_shape(tx.init, params)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _run(tx: Any, params: Any, change: Any = lambda grads: grads) -> tuple[Any, Any]:
    state = tx.init(params)
    for seed in range(STEPS):
        grads = change(gradients(params, seed))
        updates, state = tx.update(grads, state, params)
        params = applied(params, updates)
    return params, state


@standard
@pytest.mark.parametrize("change", [lambda grads: grads, _with_holes])
def test_side_leaves_move_as_alone_and_the_others_not_at_all(change: Any) -> None:
    params = _params()
    got, _ = _run(ot.ladder(DECAYED_ADAM, side="^side"), params, change)
    alone, _ = _run(DECAYED_ADAM, params["side"])
    assert_same(got, {"backbone": params["backbone"], "side": alone})
    assert (got["side"]["w"] != params["side"]["w"]).all()


@standard
def test_updates_of_frozen_leaves_are_zeros_of_their_own_layout() -> None:
    params = {
        **_params(),
        "codes": jnp.ones(3, jnp.uint8),
        "half": jnp.ones(2, "bfloat16"),
    }
    tx = ot.ladder(DECAYED_ADAM, side="^side")
    grads = ot.split({**params, "side": gradients(params["side"])}, "^side")[0]
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    assert layout(updates) == layout(params)
    frozen = ot.split(updates, "^side")[1]
    assert_same(frozen, jax.tree.map(lambda x: jnp.full_like(x, -0.0), frozen))
    assert layout(state) == layout(tx.init(params))
    # A parameter that is missing everywhere stays so.
    grads["none"] = params["none"] = None
    both: Any = tx.update(grads, tx.init(params), params)[0]
    assert both["none"] is None


@standard
@pytest.mark.parametrize("kind", CONTAINERS)
def test_holes_in_every_container(kind: str) -> None:
    arrays = "nnx_arrays" if kind == "nnx_variables" else kind
    leaves = jnp.ones(3), jnp.ones((2, 3))
    for_init, params = CONTAINERS[kind](*leaves), CONTAINERS[arrays](*leaves)
    tx = ot.ladder(DECAYED_ADAM, side="layer/w")
    state = jax.tree.unflatten(
        jax.tree.structure(tx.init(params)), jax.tree.leaves(tx.init(for_init))
    )
    grads = ot.split(gradients(params), "layer/w")[0]
    updates, after = tx.update(grads, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    want, _ = DECAYED_ADAM.update(grads, DECAYED_ADAM.init(grads), _side(params))
    b, w = jax.tree.leaves(updates)
    assert_same([w], jax.tree.leaves(want))
    assert not b.any()
    assert layout(after) == layout(state)


def _side(params: Any) -> Any:
    return ot.split(params, "layer/w")[0]


def test_frozen_leaves_keep_every_bit() -> None:
    """Whatever their gradients are."""
    q = jnp.array([2**24 + 1, 3], jnp.int32)
    params = {"q": q, "zero": jnp.array([-0.0, jnp.inf]), "side": jnp.ones(2)}
    tx = ot.ladder(optax.sgd(0.5), side="side")
    state = tx.init(params)
    bitless = np.zeros(2, jax.dtypes.float0)
    for grad in (jnp.zeros(2), jnp.full(2, jnp.inf), None, bitless):
        grads: Any = {"q": grad, "zero": grad, "side": jnp.ones(2)}
        got = applied(params, tx.update(grads, state, params)[0])
        for name in ("q", "zero"):
            assert got[name].dtype == params[name].dtype
            assert np.asarray(got[name]).tobytes() == np.asarray(params[name]).tobytes()
    grads = {"q": bitless, "zero": jnp.ones(2), "side": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"ladder needs params .* at 'q' is float0"):
        tx.update(grads, state)


def test_without_params_holes_stay_holes() -> None:
    params = _params()
    tx = ot.ladder(optax.sgd(0.5), side="^side")
    updates, _ = tx.update(_with_holes(params), tx.init(params))
    assert jax.tree.structure(updates) == jax.tree.structure(_with_holes(params))


@standard
def test_in_a_scan_with_injected_hyperparameters() -> None:
    params, tx = (
        _params(),
        optax.inject_hyperparams(optax.adamw)(lambda t: 0.1 / (t + 1)),
    )
    many = [_with_holes(gradients(params, seed)) for seed in range(STEPS)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    ladder: Any = ot.ladder(tx, side="^side")

    def step(carry: Any, grads: Any) -> Any:
        params, state = carry
        updates, state = ladder.update(grads, state, params)
        return (applied(params, updates), state), None

    start = params, ladder.init(params)
    (got, _), _ = jax.jit(lambda *args: jax.lax.scan(step, *args))(start, stacked)
    want, _ = _run(ladder, params, _with_holes)
    assert_same(got, want, ulps=4)


@standard
def test_a_million_frozen_parameters_cost_no_memory() -> None:
    params = {"backbone": jnp.zeros((1000, 1000)), "side": jnp.zeros(10)}
    count, moments = 4, 2 * 4 * 10
    tx = ot.ladder(optax.adamw(0.1), side="^side")
    assert _state_bytes(tx, params) == count + moments
    frozen_after = optax.chain(
        optax.adamw(0.1), optax.freeze({"backbone": True, "side": False})
    )
    assert _state_bytes(frozen_after, params) > 8_000_000


@standard
def test_accumulation_belongs_inside() -> None:
    params = {"backbone": jnp.ones((1000, 1000)), "side": jnp.linspace(1.0, 2.0, 10)}
    multi = lambda tx: optax.MultiSteps(tx, 2).gradient_transformation()
    inside = ot.ladder(multi(optax.sgd(0.5)), side="^side")
    outside = multi(ot.ladder(optax.sgd(0.5), side="^side"))
    assert _state_bytes(inside, params) < 100
    assert _state_bytes(outside, params) > 4_000_000
    tx: Any = inside
    state, change = tx.init(params), []
    for g in 1.0, 3.0:
        grads = {"backbone": None, "side": jnp.full(10, g)}
        updates, state = tx.update(grads, state, params)
        assert not updates["backbone"].any()
        change.append(updates["side"])
    assert not change[0].any()
    np.testing.assert_allclose(change[1], -0.5 * 2.0)


@standard
def test_clipping_belongs_inside() -> None:
    params = {"backbone": jnp.ones(4), "side": jnp.ones(1)}
    grads = {"backbone": jnp.full(4, 5.0), "side": jnp.ones(1)}  # norm 10, and 1 inside
    clip, sgd = optax.clip_by_global_norm(2.0), optax.sgd(1.0)
    inside = ot.ladder(optax.chain(clip, sgd), side="^side")
    outside = optax.chain(clip, ot.ladder(sgd, side="^side"))
    step = lambda tx: tx.update(grads, tx.init(params), params)[0]["side"]
    np.testing.assert_array_equal(step(inside), -1.0)
    shrunk = -2.0 / np.sqrt(4 * 5.0**2 + 1)
    np.testing.assert_allclose(step(outside), shrunk, rtol=1e-6)


@standard
def test_a_quantized_backbone() -> None:
    params = {"codes": jnp.array([3, 250], jnp.uint8), "side": jnp.ones(2)}
    loss = lambda p: (p["codes"].astype(jnp.float32) * p["side"]).sum()
    _, grads = ot.side_value_and_grad(loss, side="^side")(params)
    tx = ot.ladder(optax.sgd(1.0), side="^side")
    updates, _ = tx.update(grads, tx.init(params), params)
    after = applied(params, updates)
    assert_same(after, {"codes": params["codes"], "side": jnp.array([-2.0, -249.0])})


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_sharded_step_keeps_every_placement_without_communication(kind: Any) -> None:
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind,) * 2)
    whole = {"backbone": jnp.ones((8, 4)), "side": jnp.ones((4, 2))}
    place = NamedSharding(mesh, PartitionSpec("rows", "columns"))
    params = jax.device_put(whole, place)
    grads = {"backbone": None, "side": jax.device_put(whole["side"] / 2, place)}
    tx = ot.ladder(optax.sgd(0.5, momentum=0.5), side="^side")

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return applied(params, updates), state

    state = tx.init(params)
    compiled = jax.jit(step).lower(params, state, grads).compile()
    after, new = compiled(params, state, grads)
    assert_same(after, {**whole, "side": jnp.full((4, 2), 0.75)})
    for leaf in jax.tree.leaves([after, state, new]):
        assert leaf.sharding.is_equivalent_to(place, 2)
    text = compiled.as_text() or ""
    assert not re.search("all-|collective|reduce-scatter", text)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("head", r"side 'head' matches no leaf.*'backbone/b', 'backbone/w', 'side/w'"),
        (
            "w|b",
            r"side 'w\|b' matches every leaf.*'backbone/b', 'backbone/w', 'side/w'",
        ),
        (lambda path, leaf: True, r"side \(a predicate\) matches every leaf"),
        ({"backbone": True, "side": True}, "matches every leaf"),
        ("(", "not a regular expression"),
    ],
)
def test_a_selector_of_none_or_all_is_an_error(side: Any, message: str) -> None:
    params = _params()
    with pytest.raises(ValueError, match=message):
        ot.ladder(optax.sgd(0.1), side=side).init(params)
    with pytest.raises(ValueError, match=message):
        ot.side_value_and_grad(lambda p: 0.0, side=side)(params)


def test_what_a_wrapper_took_out_counts_as_frozen() -> None:
    side = ot.split(_params(), "^side")[0]
    tx = ot.ladder(optax.sgd(1.0), side=lambda path, leaf: True)
    assert_same(
        tx.update(side, tx.init(side), side)[0], jax.tree.map(lambda x: -x, side)
    )
    # But a path that matches is known to be in the side, leaf or not.
    with pytest.raises(ValueError, match="every leaf"):
        ot.ladder(optax.sgd(1.0), side=".").init(side)


def _wrong() -> Any:
    return 1


def test_bad_arguments_are_errors() -> None:
    params, wrong = flax.core.freeze(_params()), _wrong()
    with pytest.raises(TypeError, match="inner must be an optax"):
        ot.ladder(wrong, side="side")
    with pytest.raises(TypeError, match="has_aux must be True or False"):
        ot.side_value_and_grad(lambda p: p, side="side", has_aux=wrong)
    tx = ot.ladder(optax.sgd(0.1), side="w")
    with pytest.raises(ValueError, match="side without a gradient: 'backbone/w'"):
        tx.update(ot.split(params, "^side")[0], tx.init(params), params)
    with pytest.raises(TypeError, match="leaf at 'side' has dtype int32"):
        tx = ot.ladder(optax.sgd(0.1), side="side")
        tx.init({"side": jnp.arange(3), "w": jnp.ones(2)})
    with pytest.raises(ValueError, match="matches no leaf"):
        ot.ladder(optax.sgd(0.1), side="x").init(
            nnx.State({"w": nnx.Param(jnp.ones(2))})
        )
