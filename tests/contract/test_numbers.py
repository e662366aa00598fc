"""Numbers of Python, NumPy and JAX act alike, and leave the dtype of updates alone."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.bad_input.factories import FACTORIES
from tests.bad_input.rows import params
from tests.problems import assert_same, gradients, layout

pytestmark = pytest.mark.usefixtures("standard_promotion")

# Numbers that every dtype holds exactly, so that all kinds are the same number.
EXACT = {
    "adam_learning_rate": 0.3125,
    "b1": 0.875,
    "b2": 0.96875,
    "beta": 0.875,
    "dead_zone": 0.0625,
    "decay": 0.75,
    "exponent": 0.5,
    "fast_learning_rate": 0.625,
    "floor": 0.5,
    "gap": 0.5,
    "keep_rate": 0.75,
    "learning_rate": 0.375,
    "rms_floor": 0.5,
    "scalar_factor": 0.75,
    "shrink": 0.875,
    "smoothing": 0.875,
    "temperature": 1.5,
    "weight_decay": 0.25,
}
SCHEDULES = ("adam_learning_rate", "exponent", "fast_learning_rate", "keep_rate")
SCHEDULES += ("learning_rate", "weight_decay")
KINDS: dict[str, Callable[[float], Any]] = {
    "numpy float64": np.float64,
    "numpy float32": np.float32,
    "numpy float16": np.float16,
    "numpy 0-d": np.asarray,
    "numpy 0-d float32": lambda x: np.asarray(x, np.float32),
    "jax float32": jnp.float32,
    "jax bfloat16": jnp.bfloat16,
    "jax weak": jnp.asarray,
}
TRANSFORMATIONS = {
    name: entry
    for name, entry in FACTORIES.items()
    if not isinstance(getattr(ot, name), type)
}


def numbers(name: str) -> dict[str, float]:
    """The arguments that are numbers, with a value for each."""
    good, found = FACTORIES[name].good, {}
    for argument, its in inspect.signature(getattr(ot, name)).parameters.items():
        default = good.get(argument, its.default)
        if isinstance(default, float) or argument == "adam_learning_rate":
            found[argument] = EXACT[argument]
    return found


NUMERIC = [name for name in FACTORIES if numbers(name)]
each_factory = pytest.mark.parametrize("name", NUMERIC)
each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def tree(dtype: str) -> Any:
    return jax.tree.map(lambda leaf: 0.75 * leaf.astype(dtype), params())


def run(name: str, dtype: str, **arguments: Any) -> tuple[Any, Any]:
    """The updates of two steps, and the dtypes of the last state."""
    factory = getattr(ot, name)
    tx = factory(**{**FACTORIES[name].good, **arguments})
    at = tree(dtype)
    state, out = tx.init(at), []
    for seed in 1, 2:
        updates, state = tx.update(gradients(at, seed), state, at)
        out.append(updates)
    return out, layout(state)


@each_dtype
@each_factory
def test_all_kinds_of_numbers_act_alike(name: str, dtype: str) -> None:
    want, _ = run(name, dtype, **numbers(name))
    assert all(layout(updates) == layout(tree(dtype)) for updates in want)
    for kind in KINDS.values():
        given = {key: kind(value) for key, value in numbers(name).items()}
        assert_same(run(name, dtype, **given)[0], want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@each_factory
def test_traced_numbers_keep_dtypes(name: str, dtype: str) -> None:
    for kind in jnp.float32, jnp.bfloat16, float:
        given = {key: kind(value) for key, value in numbers(name).items()}
        traced = jax.eval_shape(lambda given: run(name, dtype, **given)[0], given)
        assert all(layout(updates) == layout(tree(dtype)) for updates in traced)


@pytest.mark.parametrize("name", ["lion", "tiger", "two_timescale", "mixed_sign"])
def test_traced_numbers_are_numbers(name: str) -> None:
    compiled = jax.jit(lambda given: run(name, "bfloat16", **given)[0])
    want = jax.jit(lambda: run(name, "bfloat16", **numbers(name))[0])()
    # A constant is folded where an operand is not.
    assert_same(compiled(numbers(name)), want, ulps=2)


@each_dtype
@each_factory
def test_schedules_may_give_any_kind(name: str, dtype: str) -> None:
    known = {key: x for key, x in numbers(name).items() if key in SCHEDULES}
    if name == "ema_params":
        known["decay"] = EXACT["decay"]
    if name == "magma" or not known:  # no schedules there
        return
    always = lambda x: lambda step: x
    constant = lambda kind: {key: always(kind(x)) for key, x in known.items()}
    want, state = run(name, dtype, **constant(float))
    assert_same(want, run(name, dtype, **known)[0])
    for kind in KINDS.values():
        got, now = run(name, dtype, **constant(kind))
        assert_same(got, want)
        assert now == state


@each_dtype
def test_whole_numbers_are_numbers(dtype: str) -> None:
    want, _ = run("lion", dtype, learning_rate=1.0, weight_decay=1.0)
    for kind in int, np.int32, np.uint8, jnp.int32, jnp.uint8, np.asarray:
        given = {"learning_rate": kind(1), "weight_decay": kind(1)}
        assert_same(run("lion", dtype, **given)[0], want)


def test_with_wide_numbers_narrow_leaves_stay_so() -> None:
    with jax.enable_x64(True):
        for name in "lion", "tiger", "two_timescale", "mixed_sign":
            given = {key: np.float64(x) for key, x in numbers(name).items()}
            for dtype in "bfloat16", "float32", "float64":
                for updates in run(name, dtype, **given)[0]:
                    assert layout(updates) == layout(tree(dtype))


def test_float32_numbers_injected_into_bfloat16() -> None:
    make: Any = optax.inject_hyperparams(ot.lion, hyperparam_dtype=jnp.float32)
    tx, at = make(0.1, b2=0.999), tree("bfloat16")
    state = tx.init(at)
    grads = gradients(at)
    updates, after = jax.jit(tx.update)(grads, state, at)
    want, _ = jax.jit(ot.lion(0.1, b2=0.999).update)(
        grads, ot.lion(0.1, b2=0.999).init(at), at
    )
    assert layout(updates) == layout(at)
    assert layout(after) == layout(state)
    assert_same(updates, want, ulps=1)


def test_a_product_is_rounded_once() -> None:
    """0.3 is 0.30078125 in bfloat16."""
    grads = jnp.asarray([1.0078125, 1.59375], jnp.bfloat16)
    rate: Any = np.float32(0.3)
    tx = ot.two_timescale(optax.identity(), 0.3, fast="a", fast_learning_rate=rate)
    tree = {"a": grads, "b": grads}
    updates: Any = tx.update(tree, tx.init(tree))[0]
    want = (-0.3 * np.asarray(grads, np.float64)).astype(jnp.bfloat16)
    assert updates["a"].tolist() == updates["b"].tolist() == want.tolist()
