"""Which part of an optimizer state belongs to which parameter."""

import dataclasses
from functools import partial
from typing import Any

import jax
import optax

from . import checks
from .paths import flatten, is_hole, leaves_with_paths


@dataclasses.dataclass(frozen=True)
class _OfParam:
    """Stands for a leaf of the state that belongs to a parameter."""

    path: str | None = None


def transformation_of(**named: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer as a transformation; `optax.MultiSteps` is none by itself."""
    ((name, tx),) = named.items()
    if isinstance(tx, optax.MultiSteps):
        # Not its `gradient_transformation`, which takes no extra arguments.
        multi: Any = tx
        return optax.GradientTransformationExtraArgs(multi.init, multi.update)
    checks.optimizer(**{name: tx})
    return optax.with_extra_args_support(tx)


def owners(tx: optax.GradientTransformation, state: Any, params: Any) -> list[Any]:
    """For each leaf of `state`, the path of the parameter that it belongs to, or None.

    Optax says which leaves belong to parameters, and to which. Where containers differ,
    as inside some wrappers, the ends of their paths say the latter: the longest
    parameter path that a leaf's path ends in.
    """
    found = _owners(tx, state, params)
    return [None] * len(jax.tree.leaves(state)) if found is None else found


def beside_params(
    tx: optax.GradientTransformation, state: Any, tree: Any, *, rest: Any, by: str
) -> Any:
    """For every part of a state of `tx`, the entry of `tree` for the leaf it is of.

    Parts that belong to no leaf get `rest`.
    """
    found = _owners(tx, state, tree)
    if found is None:
        raise checks.strange_state("", state, by=by)
    table = dict(leaves_with_paths(tree))
    beside = [rest if owner is None else table[owner] for owner in found]
    return jax.tree.unflatten(jax.tree.structure(state), beside)


def _owners(tx: optax.GradientTransformation, state: Any, params: Any) -> Any:
    """As `owners`; None for a state that `tx` does not make, as far as Optax knows."""
    named = leaves_with_paths(params)
    names = jax.tree.unflatten(flatten(params)[1], [path for path, _ in named])
    mark = lambda leaf, *name: leaf if is_hole(leaf) else _OfParam(*name)
    find = partial(optax.tree.map_params, tx.init, mark, state, is_leaf=is_hole)
    try:
        marked = find(names)
    except Exception:
        try:
            marked = find()
        except Exception:  # an `init` without Optax's placeholder, as L-BFGS has
            return None
    paths = sorted((path for path, _ in named), key=len)
    return [
        (leaf.path or _ending(path, paths)) if isinstance(leaf, _OfParam) else None
        for path, leaf in leaves_with_paths(marked)
    ]


def nodes_of(tree: Any, kind: Any) -> list[tuple[Any, Any]]:
    """The nodes of a type, or of one of several, with the keys that lead to them."""
    is_node = lambda node: isinstance(node, kind)
    found = jax.tree.leaves_with_path(tree, is_leaf=is_node)
    return [(keys, node) for keys, node in found if is_node(node)]


def _ending(path: str, params: list[str]) -> str | None:
    fits = lambda end: not end or path == end or path.endswith("/" + end)
    return next((end for end in reversed(params) if fits(end)), None)
