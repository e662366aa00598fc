"""Leaf paths: one spelling for Linen dicts, `nnx.State`, dataclasses and tuples."""

from collections.abc import Iterable
from typing import Any

import jax
import optax

KeyPath = tuple[Any, ...]


def path_of(key_path: KeyPath) -> str:
    """Joins the keys of a JAX key path by `/`, without a trailing `.value`.

    A Flax Variable is a node whose only child is the attribute `value`: dropping
    that last step gives Variables (as `nnx.Optimizer` passes to `init`) and plain
    arrays (as it passes to `update`) the same path.
    """
    last = key_path[-1] if key_path else None
    if isinstance(last, jax.tree_util.GetAttrKey) and last.name == "value":
        key_path = key_path[:-1]
    return "/".join(_step(key) for key in key_path)


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of `tree` with their paths, in JAX's leaf order."""
    return [(path_of(k), leaf) for k, leaf in jax.tree.leaves_with_path(tree)]


def is_hole(node: Any) -> bool:
    """Whether a node stands where a leaf was taken out: `None` or `MaskedNode`."""
    return node is None or isinstance(node, optax.MaskedNode)


def holes(tree: Any) -> list[str]:
    """Paths at which `optax.masked`, `optax.partition` or a split took a leaf out."""
    marked = jax.tree.leaves_with_path(tree, is_leaf=is_hole)
    return [path_of(k) for k, node in marked if is_hole(node)]


def listing(paths: Iterable[str], limit: int = 30) -> str:
    """Quoted paths for an error message; a long list is cut and counted."""
    names = [repr(path) for path in paths]
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "(none)") + more


def _step(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
