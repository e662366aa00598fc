"""Checks of what `update` is given, which name the leaf where it goes wrong."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from . import checks
from .alignment import Beside, params_like
from .build import Update, transformation
from .layers import Stacked, layer_axes, layer_seen
from .paths import OneLeaf, flatten, leaves_with_paths


def inexact_updates(updates: Any, *, by: str) -> None:
    """Rejects updates of other things than floats; those of a RowSparse count."""
    leaves, layout = flatten(updates)
    values = [getattr(x, "values", x) if isinstance(x, OneLeaf) else x for x in leaves]
    checks.inexact_leaves(jax.tree.unflatten(layout, values), by=by)


def stack_axes(updates: Any, stacked: Stacked | None) -> list[int | None]:
    """The layer axes of updates; rows of a RowSparse are no layers."""
    axes = layer_axes(updates, stacked)
    if stacked is None:
        return axes  # without the cost of paths
    for (path, leaf), axis in zip(leaves_with_paths(updates), axes, strict=True):
        if axis is not None and isinstance(leaf, OneLeaf):
            raise ValueError(
                f"the update at {path!r} is a {type(leaf).__name__}, whose rows are no "
                "layers: let `stacked` leave it out."
            )
        if axis is not None and layer_seen(path) is not None:
            raise ValueError(
                f"stacked chooses {path!r}, of which per_layer shows one layer at a "
                "time: put what counts layers outside of it."
            )
    return axes


def with_params(
    tx: optax.GradientTransformation, *, by: str, kind: type = object
) -> optax.GradientTransformationExtraArgs:
    """The same transformation, but a state of another type, and parameters that are
    missing or laid out otherwise, are refused at once."""

    def look(updates: Any, state: Any, params: Any) -> Any:
        state_of(kind, state, by=by)
        checks.inexact_leaves(updates, by=by, allow_complex=False)
        return given(params, updates, by=by)

    def init(params: optax.Params) -> optax.OptState:
        checks.inexact_leaves(params, by=by, allow_complex=False)
        return tx.init(params)

    return transformation(init, _looking_first(tx, look))


def beside_updates(
    tx: optax.GradientTransformation, *, by: str
) -> optax.GradientTransformationExtraArgs:
    """The same transformation, but parameters come in the containers of the updates.

    So Optax's own, which match by structure, take whole models and any order.
    """

    def look(updates: Any, state: Any, params: Any) -> Any:
        del state
        return None if params is None else params_like(params, updates, by=by)

    return transformation(tx.init, _looking_first(tx, look), one_leaf=True)


def beside_moments(
    tx: optax.GradientTransformation, *, by: str
) -> optax.GradientTransformationExtraArgs:
    """One of Optax's with a momentum, whose gaps and shapes updates must have."""

    def look(updates: Any, state: Any, params: Any) -> Any:
        Beside(optax.tree.get(state, "mu"), updates, by=by)
        return params

    return transformation(tx.init, _looking_first(tx, look))


def _looking_first(tx: Any, look: Callable[[Any, Any, Any], Any]) -> Update[Any]:
    """The update of `tx`, after a look at its arguments that gives the parameters."""
    inner = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        params = look(updates, state, params)
        return inner.update(updates, state, params, **extra_args)

    return update


def state_of(kind: type, state: Any, *, by: str) -> None:
    """Rejects what is not the state that `by` made."""
    if not isinstance(state, kind):
        raise checks.strange_state(f" of type {kind.__name__}", state, by=by)


def given(
    params: optax.Params | None, updates: optax.Updates, *, by: str
) -> optax.Params:
    """The parameters, as `params_like`, or an error if there are none."""
    if params is None:
        raise ValueError(f"{by} needs params in update.")
    return params_like(params, updates, by=by)
