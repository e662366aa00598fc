"""Learning rates, factors and decay by numbers of any kind.

Python's, NumPy's and JAX's numbers, known or traced, and schedules that give them, act
alike: leaves keep their dtype, and each product is taken in float32 or wider. (Optax's
own make float32 of bfloat16 where a number is an array.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .build import transformation
from .choices import for_optax
from .factors import times
from .paths import OneLeaf, is_hole
from .schedules import at_step

Rule = Callable[[optax.Updates, Any, optax.Params | None], optax.Updates]


def scale_by_rate(learning_rate: Any) -> optax.GradientTransformationExtraArgs:
    """As `optax.scale_by_learning_rate`, a schedule's count in the same state."""

    def rule(updates: optax.Updates, rate: Any, params: Any) -> optax.Updates:
        del params
        factor = -_number(rate)
        return jax.tree.map(lambda u: times(u, factor), updates, is_leaf=_is_one)

    return _by_number(rule, learning_rate=learning_rate)


def scale_by_number(factor: Any) -> optax.GradientTransformationExtraArgs:
    """As `optax.scale`."""

    def rule(updates: optax.Updates, number: Any, params: Any) -> optax.Updates:
        del params
        return jax.tree.map(lambda u: times(u, number), updates, is_leaf=_is_one)

    return _by_number(rule, factor=factor)


def add_decay(weight_decay: Any, mask: Any = None) -> optax.GradientTransformation:
    """As `optax.add_decayed_weights`."""

    def rule(updates: optax.Updates, decay: Any, params: Any) -> optax.Updates:
        if isinstance(decay, int | float) and decay == 0:
            return updates
        one = lambda u, p: u if is_hole(u) else _decayed(u, p, decay)
        return jax.tree.map(one, updates, params, is_leaf=is_hole)

    decay = _by_number(rule, weight_decay=weight_decay)
    return decay if mask is None else optax.masked(decay, for_optax(mask))


def _by_number(rule: Rule, **named: Any) -> optax.GradientTransformationExtraArgs:
    """A rule with a number in it, or with what a schedule gives."""
    ((name, number),) = named.items()

    def init(params: optax.Params) -> Any:
        del params
        if not callable(number):
            return optax.EmptyState()
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        if not callable(number):
            return rule(updates, number, params), state
        out = rule(updates, at_step(state.count, **{name: number}), params)
        count = jnp.asarray(optax.safe_increment(state.count))
        return out, optax.ScaleByScheduleState(count=count)

    return transformation(init, update, one_leaf=True)


def _number(value: Any) -> Any:
    """A number that can be negative, and loses nothing by it."""
    if isinstance(value, int | float):
        return value
    value = jnp.asarray(value)
    wide = jnp.issubdtype(value.dtype, jnp.float64)
    return value.astype(value.dtype if wide else np.float32)


def _decayed(update: Any, param: Any, decay: Any) -> jax.Array:
    update, param = jnp.asarray(update), jnp.asarray(param)
    wide = np.promote_types(update.dtype, np.float32)
    added = jnp.asarray(decay, wide) * param.astype(wide)
    return (update.astype(wide) + added).astype(update.dtype)


def _is_one(node: Any) -> bool:
    return isinstance(node, OneLeaf)
