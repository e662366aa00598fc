"""Checks of what `update` is given, which name the leaf where it goes wrong."""

from typing import Any

import jax
import optax

from . import checks
from .build import transformation
from .layers import Stacked, layer_axes, layer_seen
from .paths import OneLeaf, flatten, is_hole, leaves_with_paths, nodes_with_paths


def inexact_updates(updates: Any, *, by: str) -> None:
    """Rejects updates of other things than floats; those of a RowSparse count."""
    leaves, layout = flatten(updates)
    values = [getattr(x, "values", x) if isinstance(x, OneLeaf) else x for x in leaves]
    checks.inexact_leaves(jax.tree.unflatten(layout, values), by=by)


def same_shapes(
    updates: Any, known: Any, *, by: str, name: str, holes: bool = False
) -> None:
    """Rejects updates that do not have the leaves and shapes of the argument `name`.

    With `holes`, updates may have None where the other has a leaf.
    """
    leaves = jax.tree.leaves(updates, is_leaf=_is_node)
    others = jax.tree.leaves(known, is_leaf=_is_node)
    if len(leaves) != len(others):
        raise ValueError(
            f"{by} got updates with {len(leaves)} leaves, but {name} with "
            f"{len(others)}."
        )
    shapes = [(_shape(x), _shape(y)) for x, y in zip(leaves, others, strict=True)]
    if holes:
        shapes = [(other if s is None else s, other) for s, other in shapes]
    if all(shape == other for shape, other in shapes):
        return  # without the cost of paths
    # A RowSparse is one leaf, of the shape of its table.
    plain = jax.tree.map(lambda x: None if is_hole(x) else 0, updates, is_leaf=_is_node)
    paths = [path for path, _ in nodes_with_paths(plain)]
    for path, (shape, other) in zip(paths, shapes, strict=True):
        if shape != other:
            raise ValueError(
                f"{by} got an update of {_shown(shape)} at {path!r}, where {name} has "
                f"{_shown(other)}."
            )


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
    tx: optax.GradientTransformation, *, by: str
) -> optax.GradientTransformationExtraArgs:
    """The same transformation, but without or unlike parameters are refused at once."""
    tx = optax.with_extra_args_support(tx)

    def init(params: optax.Params) -> optax.OptState:
        checks.inexact_leaves(params, by=by, allow_complex=False)
        return tx.init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        params = given(params, by=by)
        checks.inexact_leaves(updates, by=by, allow_complex=False)
        same_shapes(updates, params, by=by, name="params")
        return tx.update(updates, state, params, **extra_args)

    return transformation(init, update)


def state_of(kind: type, state: Any, *, by: str) -> None:
    """Rejects what is not the state that `by` made."""
    if not isinstance(state, kind):
        raise TypeError(
            f"{by} needs a state of type {kind.__name__}, as its init makes it, got "
            f"{type(state).__name__}; update takes (updates, state, params)."
        )


def given(params: optax.Params | None, *, by: str) -> optax.Params:
    """The parameters, or an error if there are none."""
    if params is None:
        raise ValueError(f"{by} needs params in update.")
    return params


def _is_node(node: Any) -> bool:
    """Whether a node is an array, stands for one, or for one that was taken out."""
    return hasattr(node, "shape") or is_hole(node)


def _shape(leaf: Any) -> tuple[int, ...] | None:
    """The shape of an array or of what stands for one; numbers have none."""
    return None if is_hole(leaf) else tuple(getattr(leaf, "shape", ()))


def _shown(shape: tuple[int, ...] | None) -> str:
    return "no leaf" if shape is None else f"shape {shape}"
