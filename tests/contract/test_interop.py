"""Inside Optax's own wrappers, on odd leaves, and in every kind of container."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cases import CASES, Case
from tests.problems import (
    CONTAINERS,
    assert_same,
    assert_same_leaves,
    gradients,
    layout,
    values,
)

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def _first_update(case: Case, tx: Any, params: Any, **extra_args: Any) -> Any:
    extra = {**case.extra_args(params), **extra_args}
    return tx.update(gradients(params), tx.init(params), params, **extra)


@each_case
def test_chain_passes_updates_and_arguments_through(case: Case) -> None:
    params = case.params(jnp.float32)
    tx = optax.chain(optax.scale(2.0), case.make(params), optax.scale(-0.5))
    got, _ = _first_update(case, tx, params)
    alone = case.make(params)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, gradients(params))
    extra = case.extra_args(params)
    want, _ = alone.update(doubled, alone.init(params), params, **extra)
    assert_same(got, jax.tree.map(lambda leaf: -0.5 * leaf, want))


@each_case
def test_unknown_extra_arguments_change_nothing(case: Case) -> None:
    params = case.params(jnp.float32)
    tx = case.make(params)
    plain = _first_update(case, tx, params)
    assert_same(_first_update(case, tx, params, loss=1.0, unknown=None), plain)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name)
        for name, case in CASES.items()
        if "inner" in inspect.signature(case.factory).parameters
    ],
)
def test_wrappers_forward_unknown_extra_arguments(case: Case) -> None:
    params = case.params(jnp.float32)
    seen: list[Any] = []

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        seen.append(extra_args["unknown"])
        return updates, state

    inner = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    arguments = {**case.arguments(params), "inner": inner}
    _first_update(case, case.factory(**arguments), params, unknown="news")
    assert seen == ["news"]


@each_case
def test_masked_and_partition_show_it_the_visible_leaves_only(case: Case) -> None:
    params = case.params(jnp.float32)
    shown = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    hole = lambda keep, leaf: leaf if keep else optax.MaskedNode()
    visible = jax.tree.map(hole, shown, params)
    want, _ = _first_update(case, case.make(visible), visible)
    want = jax.tree.leaves(want)

    masked = optax.masked(case.make(visible), shown)
    labels = jax.tree.map(lambda keep: "it" if keep else "rest", shown)
    partition = optax.partition(
        {"it": case.make(visible), "rest": optax.set_to_zero()}, labels
    )
    for tx, other in (masked, lambda leaf: leaf), (partition, jnp.zeros_like):
        updates, state = _first_update(case, tx, params)
        got = [u for u, keep in zip(*_leaves(updates, shown), strict=True) if keep]
        assert_same(got, want)
        rest = [u for u, keep in zip(*_leaves(updates, shown), strict=True) if not keep]
        left = [
            other(g)
            for g, keep in zip(*_leaves(gradients(params), shown), strict=True)
            if not keep
        ]
        assert_same(rest, left)
        assert layout(state) == layout(tx.init(params))


@each_case
def test_optax_still_finds_parameters_inside_partition(case: Case) -> None:
    params = case.params(jnp.float32)
    tx: Any = optax.partition({"it": case.make(params)}, lambda tree: _all(tree, "it"))
    state = tx.init(params)
    same = optax.tree.map_params(tx, lambda leaf: leaf, state)
    assert_same(same, state)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name) for name, case in CASES.items() if case.inject],
)
def test_injected_hyperparameters_act_like_arguments(case: Case) -> None:
    params = case.params(jnp.float32)
    arguments = case.arguments(params)
    every = inspect.signature(case.factory).parameters.values()
    names = {p.name for p in every if p.kind is not p.VAR_KEYWORD}
    static = tuple(names - set(case.inject))
    tx: Any = optax.inject_hyperparams(case.factory, static_args=static)(**arguments)
    state = tx.init(params)
    assert set(case.inject) == set(state.hyperparams)
    update = jax.jit(tx.update)
    grads, extra = gradients(params), case.extra_args(params)
    got, after = update(grads, state, params, **extra)
    plain = case.make(params)
    want, _ = jax.jit(plain.update)(grads, plain.init(params), params, **extra)
    # The injected value is a float32 operand and the argument a Python constant.
    assert_same(got, want, ulps=max(case.ulps, 2))
    assert layout(after) == layout(state)

    changed = {k: v * 0.1 for k, v in state.hyperparams.items()}
    altered = state._replace(hyperparams=changed)
    other, other_after = update(grads, altered, params, **extra)
    one, two = (got, after.inner_state), (other, other_after.inner_state)
    pairs = zip(*map(jax.tree.leaves, (one, two)), strict=True)
    assert any((a != b).any() for a, b in pairs)


@pytest.mark.usefixtures("standard_promotion")
@each_case
def test_apply_if_finite_skips_a_bad_step(case: Case) -> None:
    params = case.params(jnp.float32)
    tx: Any = optax.apply_if_finite(case.make(params), max_consecutive_errors=2)
    state, extra = tx.init(params), case.extra_args(params)
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    if case.widens:  # Optax's zeros have the dtype of what comes in
        with pytest.raises(TypeError, match="branches must have equal output types"):
            tx.update(bad, state, params, **extra)
        return
    zero, after = tx.update(bad, state, params, **extra)
    assert_same(zero, jax.tree.map(jnp.zeros_like, params))
    assert_same(after.inner_state, state.inner_state)
    got, _ = tx.update(gradients(params), after, params, **extra)
    want, _ = _first_update(case, case.make(params), params)
    assert_same(got, want, ulps=case.ulps)


@each_case
def test_odd_leaves_keep_their_layout(case: Case) -> None:
    params = {
        **case.params(jnp.float32),
        "empty": jnp.zeros((0, 4)),
        "none": None,
        "one": jnp.ones((1,)),
        "scalar": jnp.full((), 0.5, jnp.float32),
        "masked": optax.MaskedNode(),
    }
    tx = case.make(params)
    state = tx.init(params)
    updates, after = _first_update(case, tx, params)
    assert layout(updates) == layout(case.as_updates(params))
    assert layout(after) == layout(state)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@each_case
def test_a_number_of_python_is_a_scalar(case: Case) -> None:
    params = case.params(jnp.float32)
    grads, extra = gradients(params), case.extra_args(params)
    tx = case.make(params)
    want: Any = tx.update(grads, tx.init(params), params, **extra)[0]
    params, grads = (
        {**tree, "scale": float(tree["scale"])} for tree in (params, grads)
    )
    got: Any = tx.update(grads, tx.init(params), params, **extra)[0]
    if not case.widens:  # it is a float32 then, and no narrow number
        np.testing.assert_allclose(got["scale"], want["scale"], rtol=1e-6)
    assert_same({**got, "scale": want["scale"]}, want)


@each_case
def test_a_tree_without_leaves_is_allowed(case: Case) -> None:
    params = case.params(jnp.float32)
    tx, extra = case.make(params), case.extra_args(params)
    for empty in (
        {},
        {"none": None},
        jax.tree.map(lambda _: optax.MaskedNode(), params),
    ):
        state = tx.init(empty)
        updates, after = tx.update(empty, state, empty, **extra)
        assert updates == empty
        assert layout(after) == layout(state)


@each_case
def test_every_container_gives_the_updates_of_a_dict(case: Case) -> None:
    b, w = values((6,), jnp.float32, 0), values((4, 6), jnp.float32, 0)
    plain = CONTAINERS["dict"](b, w)
    want, _ = _first_update(case, case.make(plain), plain)
    for container in CONTAINERS.values():
        params = container(b, w)
        got, _ = _first_update(case, case.make(params), params)
        assert jax.tree.structure(got) == jax.tree.structure(params)
        assert_same_leaves(got, want)


@each_case
def test_init_on_variables_serves_updates_of_arrays(case: Case) -> None:
    b, w = values((6,), jnp.float32, 0), values((4, 6), jnp.float32, 0)
    wrapped, arrays = CONTAINERS["nnx_variables"](b, w), CONTAINERS["nnx_arrays"](b, w)
    grads, extra = gradients(arrays), case.extra_args(arrays)
    for made_for in wrapped, arrays:
        tx = case.make(made_for)
        # As nnx.Optimizer does: Variables at init, arrays in update.
        state = jax.tree.unflatten(
            jax.tree.structure(case.make(arrays).init(arrays)),
            jax.tree.leaves(tx.init(wrapped)),
        )
        got, _ = tx.update(grads, state, arrays, **extra)
        assert_same_leaves(got, _first_update(case, case.make(arrays), arrays)[0])


@each_case
def test_tuples_and_lists_are_trees_too(case: Case) -> None:
    tree = case.params(jnp.float32)
    leaves = jax.tree.leaves(tree)
    for params in (tuple(leaves), [leaves[:2], (leaves[2], leaves[3:])], (tree, tree)):
        tx = case.make(params)
        updates, state = _first_update(case, tx, params)
        assert layout(updates) == layout(case.as_updates(params))
        assert layout(state) == layout(tx.init(params))


@each_case
def test_numpy_leaves_are_accepted(case: Case) -> None:
    params = case.params(jnp.float32)
    held = jax.tree.map(np.asarray, params)
    want = _first_update(case, case.make(params), params)
    tx = case.make(held)
    grads = jax.tree.map(np.asarray, gradients(params))
    got = tx.update(grads, tx.init(held), held, **case.extra_args(held))
    assert_same(got, want)


def _leaves(*trees: Any) -> list[list[Any]]:
    return [jax.tree.leaves(tree) for tree in trees]


def _all(tree: Any, label: str) -> Any:
    return jax.tree.map(lambda leaf: label, tree)
