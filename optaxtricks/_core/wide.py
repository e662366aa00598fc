"""Arithmetic and state in float32 for an optimizer that lacks it on narrow leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .build import transformation


def in_float32(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Shows `inner` leaves in float32 or wider; its updates are rounded once."""
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        params = None if params is None else _widened(params)
        out, state = inner.update(_widened(updates), state, params, **extra_args)
        narrow = lambda u, g: u.astype(jnp.result_type(g))
        return jax.tree.map(narrow, out, updates), state

    init = lambda params: inner.init(_widened(params))
    return transformation(init, update, one_leaf=True)


def _widened(tree: Any) -> Any:
    def wide(leaf: Any) -> Any:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            dtype = np.promote_types(leaf.dtype, np.float32)
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
        leaf = jnp.asarray(leaf)
        return leaf.astype(np.promote_types(leaf.dtype, np.float32))

    return jax.tree.map(wide, tree)
