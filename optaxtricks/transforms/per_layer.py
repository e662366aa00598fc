"""One layer of a stack at a time, for transformations that act on whole tensors."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.layer_plan import LayerPlan
from .._core.layers import Stacked, layer_axes
from .._core.paths import flatten


def per_layer(
    inner: optax.GradientTransformation, stacked: Stacked
) -> optax.GradientTransformationExtraArgs:
    """TODO"""
    checks.optimizer(inner=inner)
    inner = optax.with_extra_args_support(inner)
    plans: dict[Any, LayerPlan] = {}

    def plan(tree: Any) -> LayerPlan:
        leaves, layout = flatten(tree)
        known = layout, tuple(map(jax.typeof, leaves))
        if known not in plans:
            plans[known] = LayerPlan(inner, tree, layer_axes(tree, stacked))
        return plans[known]

    def init(params: optax.Params) -> optax.OptState:
        params = jax.tree.map(jnp.asarray, params)
        return plan(params).init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is not None:
            update_checks.same_shapes(updates, params, by="per_layer", name="params")
        updates, params = jax.tree.map(jnp.asarray, (updates, params))
        return plan(updates if params is None else params).update(
            updates, state, params, extra_args
        )

    return transformation(init, update, one_leaf=True)
