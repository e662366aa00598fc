"""What is drawn for symbolic shapes is what is drawn for each shape they stand for."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import optaxtricks as ot
from optaxtricks._core.counter_hash import index_axes
from tests.problems import assert_same, values

SHAPES = {"b, 4": [(1, 4), (3, 4)], "3, 5, b": [(3, 5, 2)], "b, 3, c": [(2, 3, 7)]}
each_shape = pytest.mark.parametrize(("symbols", "shapes"), SHAPES.items(), ids=SHAPES)


def _two_steps(tx: Any) -> Any:
    def steps(params: Any, grads: Any) -> Any:
        state, out = tx.init(params), []
        for _ in range(2):
            updates, state = tx.update(grads, state, params)
            out.append(updates)
        return out, state

    return jax.jit(steps)


def _compare(tx: Any, dtype: Any, symbols: str, shapes: list[tuple[int, ...]]) -> None:
    kind = jax.ShapeDtypeStruct(jax.export.symbolic_shape(symbols), dtype)
    steps = _two_steps(tx)
    exported = jax.export.export(steps)({"w": kind}, {"w": kind})
    for shape in shapes:
        params, grads = ({"w": values(shape, dtype, seed)} for seed in (1, 2))
        assert_same(exported.call(params, grads), steps(params, grads))


@each_shape
@pytest.mark.parametrize("granularity", ["element", "row", "leaf"])
@pytest.mark.parametrize("distribution", ["bernoulli", "gaussian"])
def test_dropout(
    distribution: Any, granularity: Any, symbols: str, shapes: Any
) -> None:
    tx = ot.gradient_dropout(
        0.5, key=0, granularity=granularity, distribution=distribution
    )
    _compare(tx, jnp.float32, symbols, shapes)


@each_shape
def test_update_dropout_of_a_narrow_leaf(symbols: str, shapes: Any) -> None:
    rate = lambda step: jnp.where(step < 1, 0.75, 0.5)
    _compare(ot.update_dropout(rate, key=3), jnp.bfloat16, symbols, shapes)


@each_shape
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding(dtype: str, symbols: str, shapes: Any) -> None:
    _compare(ot.round_stochastically(key=9), jnp.dtype(dtype), symbols, shapes)


def test_the_mask_is_that_of_the_update() -> None:
    kind = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 4"), jnp.float32)
    mask = jax.jit(lambda tree: ot.dropout_mask(tree, 0.5, key=0, step=2))
    leaf = jnp.ones((3, 4))
    assert_same(jax.export.export(mask)(kind).call(leaf), mask(leaf))


def _symbolic(symbols: str, *constraints: str) -> Any:
    return jax.export.symbolic_shape(symbols, constraints=constraints)


def test_axes_of_symbolic_sizes() -> None:
    """As of any shape that fits into a word, unless a constraint says it does not."""
    assert index_axes(_symbolic("b, 4"), "element") == (range(0), range(2))
    assert index_axes(_symbolic("b, c"), "element") == (range(0), range(2))
    large = _symbolic("b, 4", f"b >= {2**30 + 1}")
    assert index_axes(large, "element") == (range(1), range(1, 2))


@pytest.mark.parametrize("shape", [("b, 4", f"b >= {2**33}"), (f"b, {2**33}",)])
def test_too_large_in_any_case(shape: tuple[str, ...]) -> None:
    kind = jax.ShapeDtypeStruct(_symbolic(*shape), jnp.float32)
    tx = ot.gradient_dropout(0.5, key=0)
    with pytest.raises(ValueError, match=r"shape \(b, .*more than 2\*\*32 entries"):
        jax.eval_shape(tx.init, kind)
