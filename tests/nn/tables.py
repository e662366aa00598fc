"""Arrays of a table's size in a program, and what to look up."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot

NUM_ROWS, WIDTH = 500_000, 4
TABLE_BYTES = NUM_ROWS * WIDTH * 4
each_kind = pytest.mark.parametrize(
    "kind", [{"param_dtype": jnp.bfloat16}, {"dtype": jnp.bfloat16}]
)


def made_in(fn: Callable[..., Any], *args: Any) -> list[str]:
    """Lines of the program, before any optimization, that make a large table."""
    text = str(jax.make_jaxpr(fn)(*args))
    return re.findall(rf"\[{NUM_ROWS},{WIDTH}\] = .*", text)


def memory(fn: Callable[..., Any], *args: Any, donate: Any = ()) -> Any:
    """What the compiled program needs."""
    compiled = jax.jit(fn, donate_argnums=donate).lower(*args).compile()
    return compiled.memory_analysis()


def batches(count: int, size: int) -> list[tuple[jax.Array, jax.Array]]:
    """Ids over all of a large table, some of them often, and targets."""
    rng = np.random.default_rng(0)
    many = rng.integers(0, NUM_ROWS, (count, size, 2))
    few = rng.integers(0, 5, (count, size, 2))
    ids = np.where(rng.uniform(size=many.shape) < 0.5, many, few)
    targets = rng.normal(size=(count, size)).astype(np.float32)
    pairs = zip(ids, targets, strict=True)
    return [(jnp.asarray(i, jnp.int32), jnp.asarray(y)) for i, y in pairs]


def touched(data: list[tuple[jax.Array, jax.Array]]) -> np.ndarray:
    """The rows that are looked up in any batch, each once."""
    return np.unique(np.concatenate([np.asarray(ids).ravel() for ids, _ in data]))


def twice(look_up: Callable[[jax.Array], jax.Array], ids: jax.Array) -> jax.Array:
    """A loss in which two look-ups of other ids meet."""
    product = look_up(ids) * look_up(3 - ids)
    return jnp.sin(product.astype(jnp.float32)).sum()


def dense(grads: Any) -> Any:
    """A tree of gradients with arrays in place of what is row-sparse."""
    is_rows = lambda node: isinstance(node, ot.RowSparse)
    whole = lambda node: node.to_dense() if is_rows(node) else node
    return jax.tree.map(whole, grads, is_leaf=is_rows)


def assert_close(got: Any, want: Any, *, rtol: float = 1e-5) -> None:
    """Equal structures, dtypes and, but for the order of sums, numbers or NaNs."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    for left, right in pairs:
        assert (left.shape, left.dtype) == (right.shape, right.dtype)
        a, b = (np.asarray(x.astype(jnp.float32)) for x in (left, right))
        room = rtol * float(np.nanmax(np.abs(b), initial=0.0))
        np.testing.assert_allclose(a, b, rtol=rtol, atol=room)
