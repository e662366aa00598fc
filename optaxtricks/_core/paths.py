"""Leaf paths: one spelling for Linen dicts, `nnx.State`, dataclasses and tuples."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import optax

T = TypeVar("T")
_VALUE = jax.tree_util.GetAttrKey("value")


class OneLeaf:
    """A pytree node of several arrays that stands for one leaf, as a row-sparse one."""


def nodes_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves and holes of `tree` with their paths, in JAX's leaf order.

    A path is the keys joined by `/`. A Flax Variable, or a Linen box, is a node whose
    only child is the attribute `value`; that step is dropped, which gives Variables
    (as `nnx.Optimizer` passes to `init`) and plain arrays (as it passes to `update`)
    the same path.
    """
    found = jax.tree.leaves_with_path(tree, is_leaf=is_node)
    steps = [(keys[:i], key) for keys, _ in found for i, key in enumerate(keys)]
    boxes = {parent for parent, key in steps if key == _VALUE}
    if boxes:
        boxes -= {parent for parent, key in steps if key != _VALUE}
    shown = lambda keys: tuple(k for i, k in enumerate(keys) if keys[:i] not in boxes)
    return [(joined(shown(keys)), node) for keys, node in found]


def joined(keys: tuple[Any, ...]) -> str:
    """A JAX key path as a string."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def leaves_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of `tree` with their paths, in JAX's leaf order."""
    return [(path, node) for path, node in nodes_with_paths(tree) if not is_hole(node)]


def flatten(tree: Any, *, with_none: bool = False) -> tuple[list[Any], Any]:
    """As `jax.tree.flatten`, with the leaves of :func:`leaves_with_paths`."""
    return jax.tree.flatten(
        tree,
        is_leaf=lambda node: isinstance(node, OneLeaf) or (with_none and node is None),
    )


def is_hole(node: Any) -> bool:
    """Whether a node stands where a leaf was taken out: `None` or `MaskedNode`."""
    return node is None or isinstance(node, optax.MaskedNode)


def is_node(node: Any) -> bool:
    """Whether a node is one leaf or stands where one was taken out."""
    return is_hole(node) or isinstance(node, OneLeaf)


def holes(tree: Any) -> list[str]:
    """Paths at which `optax.masked`, `optax.partition` or a split took a leaf out."""
    return [path for path, node in nodes_with_paths(tree) if is_hole(node)]


def below(path: str, nodes: Sequence[str]) -> bool:
    """Whether a path is one of these, or leads on from one."""
    return any(not n or path == n or path.startswith(f"{n}/") for n in nodes)


def path_order(tree: Any) -> list[int]:
    """The numbers of the leaves of `tree`, in the order of their paths as strings.

    That is one order for all containers, for parts of a state that have no names.
    """
    paths = [path for path, _ in leaves_with_paths(tree)]
    return sorted(range(len(paths)), key=paths.__getitem__)


def table_of(entries: Sequence[tuple[str, T]], *, name: str) -> dict[str, T]:
    """Entries by path, or an error where two have the same one."""
    table = dict(entries)
    if len(table) != len(entries):
        raise ValueError(f"{name} has two leaves of the same path; rename one.")
    return table


def nearest(table: Mapping[str, Any], path: str, *, name: str) -> str:
    """The path of the entry of a prefix tree that is nearest above a leaf."""
    prefix = path
    while prefix not in table:
        if not prefix:
            raise ValueError(
                f"{name} says nothing about the leaf at {path!r}; its entries: "
                f"{listing(table)}."
            )
        prefix = prefix.rpartition("/")[0]
    return prefix


def listing(paths: Iterable[str], limit: int = 30) -> str:
    """Quoted paths for an error message; a long list is cut and counted."""
    names = [repr(path) for path in paths]
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "(none)") + more
