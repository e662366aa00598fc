"""Leaves that a mask freezes: they may have any dtype, and any gradient or none."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import checks
from .entry_masks import EntryMask, is_box, negative_zero
from .paths import is_hole, leaves_with_paths, nodes_with_paths

_REMEDY = "False in the mask, optax.masked or optax.partition"


def check_masked_leaves(tree: Any, mask: EntryMask, *, by: str) -> None:
    """Rejects leaves that are no floats or, if frozen, no numbers."""
    found = leaves_with_paths(tree)
    frozen = {path: leaf for path, leaf in found if mask.freezes(path)}
    checks.array_leaves(frozen, by=by)
    trained = {path: leaf for path, leaf in found if path not in frozen}
    checks.inexact_leaves(trained, by=by, remedy=_REMEDY)


def filled(updates: Any, params: Any, mask: EntryMask, *, by: str) -> Any:
    """The updates, with zeros for gradients of frozen leaves that no update can be.

    `optax.apply_updates` adds neither None nor a number without bits, which is what
    `jax.grad` gives for an integer, nor, under strict promotion, a float to an integer.
    """
    if not mask.freezes_some:
        return updates
    known = {} if params is None else dict(leaves_with_paths(params))

    def fill(path: str, node: Any) -> Any:
        if not mask.freezes(path) or isinstance(node, optax.MaskedNode):
            return node
        if path in known:
            fits = not is_bitless(node) and node is not None and is_float(known[path])
            return node if fits else nothing_for(known[path])
        if is_bitless(node):
            raise ValueError(
                f"{by} needs params in update: the gradient at {path!r} is float0, "
                "which does not say what can be added to the parameter."
            )
        return node

    structure = jax.tree.structure(updates, is_leaf=is_hole)
    return jax.tree.unflatten(
        structure, [fill(path, node) for path, node in nodes_with_paths(updates)]
    )


def is_bitless(leaf: Any) -> bool:
    """Whether a leaf is a number without bits: the gradient of an integer."""
    return getattr(leaf, "dtype", None) == jax.dtypes.float0


def nothing_for(leaf: Any) -> jax.Array:
    """The update of a leaf's own dtype that leaves it as it is, bit for bit."""
    return jnp.full_like(leaf, negative_zero(leaf))


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a real or complex number of limited precision."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def floats_alone(tree: Any) -> Any:
    """The tree with `optax.MaskedNode` where a leaf is no float."""
    if all(map(is_float, jax.tree.leaves(tree))):
        return tree

    def shown(node: Any) -> Any:
        return node if all(map(is_float, jax.tree.leaves(node))) else optax.MaskedNode()

    return jax.tree.map(shown, tree, is_leaf=is_box)


def with_others(floats: Any, tree: Any) -> Any:
    """The tree with its floats replaced by those of what came of `floats_alone`."""
    leaves, structure = jax.tree.flatten(tree)
    left = iter(jax.tree.leaves(floats))
    return jax.tree.unflatten(
        structure, [next(left) if is_float(leaf) else leaf for leaf in leaves]
    )
