"""The state: a fixed layout, no shared buffers, and parts that Optax can find."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cases import ALL_DTYPES, CASES, Case
from tests.problems import STEPS, assert_same, gradients, layout

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
# float16 goes where bfloat16 does, nearly always.
SLOW = {"float16": pytest.mark.slow}
ROOMS = [
    pytest.param(name, dtype, marks=SLOW.get(dtype, ()))
    for name, case in CASES.items()
    for dtype in case.dtypes
]
CLOSED = [
    (name, dtype)
    for name, case in CASES.items()
    for dtype in sorted(set(ALL_DTYPES) - set(case.dtypes))
]


@pytest.mark.parametrize(("name", "dtype"), ROOMS)
def test_state_layout_is_a_fixed_point_and_updates_keep_theirs(
    name: str, dtype: str
) -> None:
    case = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        params = case.params(jnp.dtype(dtype))
        tx, update = case.make(params), jax.jit(case.make(params).update)
        state = tx.init(params)
        for step in range(STEPS):
            grads = gradients(params, seed=step)
            updates, after = update(grads, state, params, **case.extra_args(params))
            assert layout(after) == layout(state)
            assert layout(updates) == layout(case.as_updates(params))
            state = after


@each_case
def test_eager_update_keeps_the_layouts_too(case: Case) -> None:
    params = case.params(jnp.bfloat16)
    tx = case.make(params)
    state = tx.init(params)
    updates, after = tx.update(
        gradients(params), state, params, **case.extra_args(params)
    )
    assert layout(after) == layout(state)
    assert layout(updates) == layout(case.as_updates(params))


@pytest.mark.parametrize(("name", "dtype"), CLOSED)
def test_a_dtype_that_has_no_meaning_is_an_error_of_init(name: str, dtype: str) -> None:
    case = CASES[name]
    with jax.enable_x64(dtype == "float64"):
        params = case.params(jnp.dtype(dtype))
        with pytest.raises(TypeError, match=dtype):
            case.make(params).init(params)


@each_case
def test_integer_leaves_are_an_error_of_init_that_names_the_path(case: Case) -> None:
    params = case.params(jnp.float32)
    tx = case.make(params)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.int32), params)
    if case.whole_numbers:
        _, after = tx.update(whole, state := tx.init(whole), whole)
        assert layout(after) == layout(state)
        return
    with pytest.raises(TypeError, match=r"leaf at '\w+(/\w+)*' has\s+dtype int32"):
        tx.init(whole)


@each_case
def test_abstract_and_compiled_init_agree_with_eager_init(case: Case) -> None:
    params = case.params(jnp.float32)
    tx = case.make(params)
    eager = tx.init(params)
    assert layout(jax.eval_shape(tx.init, params)) == layout(eager)
    compiled = jax.jit(tx.init)(params)
    assert layout(compiled) == layout(eager)
    assert_same(compiled, eager)


@each_case
def test_state_shares_no_buffer_with_parameters_arguments_or_itself(case: Case) -> None:
    params = case.params(jnp.float32)
    arguments = case.arguments(params)
    state = case.factory(**arguments).init(params)
    theirs = {_address(leaf) for leaf in jax.tree.leaves([params, arguments])}
    ours = [_address(leaf) for leaf in jax.tree.leaves(state)]
    assert not theirs.intersection(ours) - {None}
    assert len(set(ours)) == len(ours)


@each_case
def test_state_and_parameters_can_be_donated_at_every_step(case: Case) -> None:
    params = case.params(jnp.float32)
    tx, extra = case.make(params), case.extra_args(params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    plain, donating = jax.jit(step), jax.jit(step, donate_argnums=(0, 1))
    kept = lent = (params, tx.init(params))
    lent = jax.tree.map(jnp.copy, lent)
    for seed in range(STEPS):
        grads = gradients(params, seed)
        kept, given = plain(*kept, grads), lent
        lent = donating(*given, grads)
        read = given if case.reads_state else given[0]
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(read))
    assert_same(lent, kept)
    # What the factory holds survived, so that it still makes the first state.
    given = tx.init(params)
    donating(jax.tree.map(jnp.copy, params), given, gradients(params))
    assert_same(tx.init(params), case.make(params).init(params))


@each_case
def test_optax_finds_the_parameter_shaped_parts(case: Case) -> None:
    params = case.params(jnp.float32)
    tx: Any = optax.chain(case.make(params), optax.trace(0.5))
    state = tx.init(params)
    found: list[bool] = []

    is_hole = lambda node: isinstance(node, optax.MaskedNode)

    def visit(leaf: Any, param: jax.Array) -> Any:
        if is_hole(leaf):
            return leaf
        found.append(leaf.shape == param.shape)
        return leaf + 1

    changed: Any = optax.tree.map_params(tx, visit, state, params, is_leaf=is_hole)
    assert len(found) >= len(jax.tree.leaves(params))
    assert all(found) or not case.param_shaped
    assert layout(changed) == layout(state)
    # The trace behind the case shows that Optax looked past the case's own state.
    assert_same(changed[1], jax.tree.map(lambda leaf: leaf + 1, state[1]))


def _address(leaf: Any) -> int | None:
    if isinstance(leaf, np.ndarray):
        return leaf.ctypes.data
    if not isinstance(leaf, jax.Array):
        return None
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.unsafe_buffer_pointer()
