"""Exported with symbolic sizes, dropout draws as it does on the concrete shape."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export

import optaxtricks as ot
from tests.problems import assert_same, values

SHAPES = [
    ("b, 4", (6, 4)),
    ("4, b", (4, 6)),
    ("b", (5,)),
    ("2*b, c, 3", (4, 5, 3)),
]
OPTIONS: list[dict[str, Any]] = [
    {"granularity": granularity, "distribution": distribution}
    for granularity in ("element", "row", "leaf")
    for distribution in ("bernoulli", "gaussian")
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize(("symbolic", "shape"), SHAPES, ids=lambda s: str(s))
def test_dropout(options: Any, symbolic: str, shape: tuple[int, ...]) -> None:
    tx: Any = ot.update_dropout(0.5, key=3, **options)
    like = jax.ShapeDtypeStruct(export.symbolic_shape(symbolic), jnp.float32)
    words = jax.eval_shape(tx.init, like)

    # A NamedTuple crosses the border of an export only where it is registered.
    def update(grads: Any, parts: Any) -> Any:
        state = jax.tree.unflatten(jax.tree.structure(words), parts)
        return tx.update(grads, state)[0]

    exported = export.export(jax.jit(update))(like, jax.tree.leaves(words))
    grads = values(shape, jnp.float32, 1)
    state = tx.init(grads)
    got = exported.call(grads, jax.tree.leaves(state))
    assert_same(got, jax.jit(tx.update)(grads, state)[0], ulps=4)
    assert_same(got == 0, tx.update(grads, state)[0] == 0)


def test_what_never_fits_is_refused() -> None:
    shape = export.symbolic_shape("b, 8589934592")
    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    tx = ot.gradient_dropout(0.5, key=3)
    with pytest.raises(ValueError, match=r"more than 2\*\*32 entries on one axis"):
        jax.eval_shape(tx.init, like)
