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


def _moments(tx, at, grads):
    """The states after every step, and the updates."""
    states, out = [tx.init(at)], []
    for grad in grads:
        updates, state = jax.jit(tx.update)(grad, states[-1], at)
        states.append(state)
        out.append(updates)
    return states, out


def _of_leaf(tx, state, name):
    """The parts of the state that belong to a leaf."""
    mark = lambda part, path: part if path == name else None
    found = optax.tree.map_params(
        tx, mark, state, {"a": "a", "b": "b"}, transform_non_params=lambda _: None
    )
    return jax.tree.leaves(found)


AT = {"a": jnp.asarray([2.0, -4.0]), "b": jnp.ones((2, 3))}
INNERS = {
    "lion": ot.lion(0.1),
    "adam": optax.adamw(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "window": optax.chain(ot.scale_by_tiger(accumulate_steps=3), optax.scale(-0.1)),
    "MultiSteps": optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation(),
    "at_window_end": ot.at_window_end(optax.adam(0.1), accumulate_steps=2),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("inner", INNERS.values(), ids=INNERS)
def test_what_is_held_for_a_bad_leaf_stays_to_the_bit(inner, bad):
    tx = ot.shrink_nonfinite(inner)
    first = gradients(AT, 3)
    grads = [first, {**gradients(AT, 4), "a": jnp.asarray([1.0, bad])}]
    states, out = _moments(tx, AT, grads)
    assert _of_leaf(tx, states[1], "a") or inner is INNERS["adafactor"]
    assert_same(_of_leaf(tx, states[2], "a"), _of_leaf(tx, states[1], "a"))
    np.testing.assert_allclose(out[1]["a"], -0.01 * AT["a"], rtol=1e-5)
    # Others go on as if the gradient there were zero, and so do counts.
    alone = ot.shrink_nonfinite(inner)
    zero = [first, {**grads[1], "a": jnp.zeros(2)}]
    wanted, want = _moments(alone, AT, zero)
    assert_same(_of_leaf(tx, states[2], "b"), _of_leaf(tx, wanted[2], "b"))
    assert_same(out[1]["b"], want[1]["b"])
    counts = lambda state: [x for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert_same(counts(states[2]), counts(wanted[2]))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(states[2]))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("mean", [True, False])
def test_a_window_that_ends_with_a_bad_gradient_is_lost_there(mean):
    multi = optax.MultiSteps(optax.sgd(1.0), 2, use_grad_mean=mean)
    tx = ot.shrink_nonfinite(multi.gradient_transformation(), shrink=0.5)
    good = {"a": jnp.asarray([8.0, 8.0]), "b": jnp.ones((2, 3))}
    bad = {**good, "a": jnp.full(2, jnp.nan)}
    _, out = _moments(tx, AT, [good, bad, good, good])
    share = 1.0 if mean else 2.0
    assert [u["a"].tolist() for u in out] == [
        [0.0, 0.0],
        [-1.0, 2.0],
        [0.0, 0.0],
        [-8.0 * share, -8.0 * share],
    ]


@pytest.mark.usefixtures("standard_promotion")
def test_a_bad_call_inside_a_window_is_passed_over():
    multi = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    tx = ot.shrink_nonfinite(multi, shrink=0.5)
    good = {"a": jnp.asarray([8.0, 8.0]), "b": jnp.ones((2, 3))}
    bad = {**good, "a": jnp.full(2, jnp.nan)}
    _, out = _moments(tx, AT, [bad, good])
    assert [u["a"].tolist() for u in out] == [[-1.0, 2.0], [-4.0, -4.0]]
