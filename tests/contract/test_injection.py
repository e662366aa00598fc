"""Every factory inside `optax.inject_hyperparams`, given no more than it needs."""

import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks
from tests.bad_input.factories import FACTORIES
from tests.bad_input.rows import params
from tests.cases import CASES
from tests.problems import assert_same, gradients, layout

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

pytestmark = pytest.mark.usefixtures("standard_promotion")

# Whole numbers that say how, not how much.
STRUCTURAL = ("accumulate_steps", "key", "every")


def tree(dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: 0.75 * leaf.astype(dtype), params())


def needed(name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments without a default, and which of them are static."""
    signature = inspect.signature(getattr(ot, name)).parameters
    bare = [key for key, its in signature.items() if its.default is its.empty]
    good = FACTORIES[name].good
    arguments = {key: value for key, value in good.items() if key in bare}
    if name == "scale_by_depth":  # one of two ways to name layers
        arguments["stacked"] = good["stacked"]
    return arguments, tuple(key for key in STRUCTURAL if key in arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FACTORIES)
def test_what_a_user_does_not_pass_does_not_matter(name: str, dtype: str) -> None:
    factory = getattr(ot, name)
    arguments, static = needed(name)
    make: Any = optax.inject_hyperparams(factory, static, jnp.float32)
    at = tree(dtype)
    grads = gradients(at)
    tx, plain = make(**arguments), factory(**arguments)
    state, other = tx.init(at), plain.init(at)
    assert layout(state.inner_state) == layout(other)
    updates, after = jax.jit(tx.update)(grads, state, at)
    want, _ = jax.jit(plain.update)(grads, other, at)
    assert layout(after) == layout(state)
    assert_same(updates, want, ulps=4)


# Those whose needed arguments are all of other kinds than decays near 1.
@pytest.mark.parametrize("name", sorted(set(FACTORIES) - {"ema_params"}))
def test_numbers_in_the_dtype_of_the_parameters_work_too(name: str) -> None:
    factory = getattr(ot, name)
    arguments, static = needed(name)
    make: Any = optax.inject_hyperparams(factory, static)
    tx, at = make(**arguments), tree("bfloat16")
    state = tx.init(at)
    for step in tx.update, jax.jit(tx.update):
        updates, after = step(gradients(at), state, at)
        assert layout(after) == layout(state)
        assert layout(updates) == layout(CASES[name].as_updates(at))


SHOWN = {"accumulate_steps": 2, "every": 2}


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in FACTORIES
        for argument in inspect.signature(getattr(ot, name)).parameters
        if argument in SHOWN and name != "mixed_sign"
    ],
)
def test_a_structural_argument_names_static_args(name: str, argument: str) -> None:
    arguments = {**needed(name)[0], argument: SHOWN[argument]}
    static = tuple(set(arguments) & set(STRUCTURAL) - {argument})
    tx = optax.inject_hyperparams(getattr(ot, name), static)(**arguments)
    with pytest.raises(TypeError, match=rf'static_args=\("{argument}",\)'):
        tx.init(tree("float32"))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_key_among_the_numbers_is_the_same_key(dtype: Any) -> None:
    params = jnp.ones(8, dtype)
    make: Any = optax.inject_hyperparams(ot.gradient_dropout)
    state: Any = make(0.5, key=7).init(params)
    assert_same(state.inner_state, ot.gradient_dropout(0.5, key=7).init(params))


def test_a_mask_that_is_a_function_is_not_taken_for_a_schedule() -> None:
    matrices = lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree)
    tx = optax.inject_hyperparams(ot.lion)(0.1, mask=matrices)
    with pytest.raises(TypeError, match=r'static_args=\("mask",\)'):
        tx.init(tree("float32"))
    make: Any = optax.inject_hyperparams(ot.lion, static_args=("mask",))
    tx, plain = make(0.1, mask=matrices), ot.lion(0.1, mask=matrices)
    at = tree("float32")
    got, _ = tx.update(gradients(at), tx.init(at), at)
    want, _ = plain.update(gradients(at), plain.init(at), at)
    assert_same(got, want, ulps=2)


def test_masks_by_array_pass() -> None:
    mask: Any = {"w": jnp.asarray([True, False]), "b": True}
    at = {"w": jnp.ones(2), "b": jnp.ones(3)}
    for static in (), ("mask",):
        make: Any = optax.inject_hyperparams(ot.keep_entries, static)
        tx = make(mask)
        updates, _ = jax.jit(tx.update)(at, tx.init(at), at)
        assert updates["w"].tolist() == [1.0, 0.0]


NARROW = [
    (ot.scale_by_lion, {"b2": 0.999}, "b2"),
    (ot.lion, {"learning_rate": 0.1, "b2": 0.999}, "b2"),
    (ot.tiger, {"learning_rate": 0.1, "beta": 0.9999}, "beta"),
    (ot.ema_params, {"decay": 0.999}, "decay"),
    (ot.magma, {"smoothing": 0.999}, "smoothing"),
    (ot.gradient_dropout, {"keep_rate": 0.999}, "keep_rate"),
    (ot.scale_by_depth, {"decay": 0.999, "stacked": "emb"}, "decay"),
]


@pytest.mark.parametrize(
    ("factory", "arguments", "name"),
    NARROW,
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_decay_that_became_one_names_the_cure(
    factory: Any, arguments: dict[str, Any], name: str
) -> None:
    signature = inspect.signature(factory).parameters
    more = {"inner": ot.scale_by_lion()} if "inner" in signature else {}
    more |= {"key": 0} if "key" in signature else {}
    at = tree("bfloat16")
    more |= {"every": 1} if "every" in signature else {}
    make: Any = optax.inject_hyperparams(factory, tuple(more))
    with pytest.raises(
        ValueError, match=rf"{name} is 1.0 as a bfloat16.*hyperparam_dtype=jnp.float32"
    ):
        make(**arguments, **more).init(at)
    make = optax.inject_hyperparams(factory, tuple(more), jnp.float32)
    tx = make(**arguments, **more)
    updates, _ = jax.jit(tx.update)(gradients(at), tx.init(at), at)
    assert layout(updates) == layout(at)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float16])
def test_narrow_ends_are_refused_and_wide_ones_are_not(dtype: Any) -> None:
    for end in 0.0, 1.0:
        with pytest.raises(ValueError, match=r"decay is .*hyperparam_dtype"):
            ot.ema_params(dtype(end))
        ot.ema_params(jnp.float32(end))
    ot.ema_params(dtype(0.5))
    ot.scale_by_lion(exponent=dtype(0.0), dead_zone=dtype(0.0))
