"""Leaves whose gradient is not finite are spared, and the optimizer is spared it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import checks, update_checks, windows
from .build import transformation
from .finite import all_finite
from .selectors import Selector, matches
from .state_parts import beside_params


def shrinking(
    inner: optax.GradientTransformation,
    shrink: Any,
    to_one: Mapping[str, Selector | None],
    *,
    by: str,
    skips: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, but leaves whose gradient holds NaN or infinity shrink to a centre.

    There `inner` sees zeros, and what it holds for the leaf stays as it is; unless it
    `skips` such leaves by itself, within its own pass over memory. The selector of
    leaves with centre 1 comes with the name of the argument that it is.
    """
    ((name, selector),) = to_one.items()
    checks.open_fraction(shrink=shrink)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        checks.inexact_leaves(params, by=by)
        _centres(params, selector, name)
        return inner.init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        checks.inexact_leaves(updates, by=by)
        params = update_checks.given(params, updates, by=by)
        good = jax.tree.map(all_finite, updates)
        seen = updates if skips else jax.tree.map(_or_zeros, good, updates)
        proposed, after = inner.update(seen, state, params, **extra_args)
        if not skips:
            after = _spared(inner, state, after, good, by)
        leaves, layout = jax.tree.flatten(proposed)
        out = [
            jnp.where(sound, u, _toward(p, centre, shrink, jnp.result_type(u)))
            for sound, u, p, centre in zip(
                jax.tree.leaves(good),
                leaves,
                jax.tree.leaves(params),
                _centres(params, selector, name),
                strict=True,
            )
        ]
        return jax.tree.unflatten(layout, out), after

    return transformation(init, update)


def still_where_nonfinite(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """`inner`, which sees to its state itself, without its updates of such leaves."""
    inner = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[optax.Updates, Any]:
        good = jax.tree.map(all_finite, updates)
        proposed, state = inner.update(updates, state, params, **extra_args)
        return jax.tree.map(_or_zeros, good, proposed), state

    return transformation(inner.init, update)


def _or_zeros(good: jax.Array, x: Any) -> jax.Array:
    x = jnp.asarray(x)
    return jnp.where(good, x, jnp.zeros((), x.dtype))


def _spared(inner: Any, before: Any, after: Any, good: Any, by: str) -> Any:
    """The next state; of leaves that are not good, the last one."""
    held = beside_params(inner, before, good, rest=True, by=by)
    # A sum of a window that ends starts anew whatever its last gradient was.
    ended = windows.ended(after) if windows.calls(after) else False
    held = windows.by_place(
        lambda sound, place: sound | ended if place == "sums" else sound, held
    )
    keep = lambda sound, new, old: new if sound is True else jnp.where(sound, new, old)
    return jax.tree.map(keep, held, after, before)


def _centres(params: optax.Params, to_one: Selector | None, name: str) -> list[int]:
    if to_one is None:
        return [0] * len(jax.tree.leaves(params))
    return [int(one) for one in matches(params, to_one, name=name)]


def _toward(param: Any, centre: int, shrink: Any, dtype: Any) -> jax.Array:
    """The update that shrinks a leaf."""
    param = jnp.asarray(param)
    wide = np.promote_types(param.dtype, np.float32)
    offset = param.astype(wide) - jnp.asarray(centre, wide)
    return (jnp.asarray(shrink - 1, wide) * offset).astype(dtype)
