"""Choosing whole leaves by path, and taking a tree apart by that choice."""

from typing import Any

import jax
import optax

from .._core.paths import OneLeaf, flatten, is_hole, leaves_with_paths, listing
from .._core.selectors import Selector, matches


def select(tree: Any, selector: Selector) -> Any:
    """Marks the leaves that a selector chooses.

    A leaf's path is its keys joined by ``/`` (dict keys, attribute names, indices).
    The attribute ``value`` of a node that has no other child, as of a Flax Variable,
    is dropped, so Linen dicts, ``nnx.State`` and plain trees give the same path. A
    selector is one of

    - a string or compiled pattern: a regular expression searched in the path. One
      that begins or ends with a digit finds whole numbers: ``layers/1`` and
      ``layers/[12]`` are not found in ``layers/10``, but ``layers/\\d`` is. So do the
      patterns of all functions here;
    - a predicate ``(path, leaf) -> bool``;
    - a tree of bools laid out like ``tree``, or a prefix of one.

    A :class:`RowSparse` counts as one leaf. Transformations ask their selectors again
    at every trace, of parameters and of gradients: let a predicate look at path, shape
    and dtype there, not at numbers.

    Args:
      tree: any pytree.
      selector: which leaves.

    Returns:
      A tree of Python bools with the structure of ``tree``; it fits
      ``optax.masked`` and every ``mask`` argument of Optax.

    Raises:
      ValueError: the selector matches no leaf (the message lists the paths), the
        pattern is invalid, or a tree of bools leaves a leaf uncovered or has an entry
        where there is none.
      TypeError: the selector is none of the above, or a predicate gives no bool.

    Examples:
      >>> import optaxtricks as ot
      >>> params = {"emb": 0.0, "layer": [{"w": 1.0, "b": 2.0}]}
      >>> ot.select(params, r"layer/\\d+/w")
      {'emb': False, 'layer': [{'b': False, 'w': True}]}
      >>> ot.select(params, lambda path, leaf: leaf < 1.5)
      {'emb': True, 'layer': [{'b': False, 'w': True}]}
      >>> ot.select({f"layer_{i}": 0.0 for i in (1, 10)}, "layer_1")
      {'layer_1': True, 'layer_10': False}
      >>> ot.select(params, {"emb": False, "layer": True})
      {'emb': False, 'layer': [{'b': True, 'w': True}]}
    """
    return jax.tree.unflatten(flatten(tree)[1], matches(tree, selector))


def split(tree: Any, selector: Selector) -> tuple[Any, Any]:
    """Takes a tree apart into the selected leaves and the rest.

    Both parts keep the containers of ``tree`` and hold ``None`` where the other has
    a leaf, so ``jax.grad`` over the first part differentiates it alone.

    Args:
      tree: any pytree.
      selector: which leaves go to the first part; see :func:`select`.

    Returns:
      ``(selected, rest)``, for which ``merge(selected, rest)`` is ``tree``.

    Raises:
      ValueError, TypeError: as :func:`select`.

    Examples:
      >>> import optaxtricks as ot
      >>> params = {"head": 1.0, "body": {"w": 2.0}}
      >>> ot.split(params, "head")
      ({'body': {'w': None}, 'head': 1.0}, {'body': {'w': 2.0}, 'head': None})
    """
    leaves, layout = flatten(tree)
    chosen = matches(tree, selector)
    pairs = list(zip(leaves, chosen, strict=True))
    return (
        jax.tree.unflatten(layout, [x if c else None for x, c in pairs]),
        jax.tree.unflatten(layout, [None if c else x for x, c in pairs]),
    )


def merge(selected: Any, rest: Any) -> Any:
    """Puts together what :func:`split` took apart, or Optax.

    ``None`` is a hole in the place of a leaf, ``optax.MaskedNode`` in that of a leaf
    or, as a mask that is a prefix of the parameters leaves it, of a whole subtree.

    Args:
      selected: a tree with holes.
      rest: a tree of the same containers that fills exactly those holes.

    Returns:
      The tree without the holes. A position empty in both stays as it is in ``rest``.

    Raises:
      ValueError: the containers differ, or a leaf is present in both.

    Examples:
      >>> import optax
      >>> import optaxtricks as ot
      >>> ot.merge({"a": 1.0, "b": None}, {"a": None, "b": 2.0})
      {'a': 1.0, 'b': 2.0}
      >>> ot.merge({"a": 1.0, "b": optax.MaskedNode()}, {"a": None, "b": {"w": 2.0}})
      {'a': 1.0, 'b': {'w': 2.0}}
    """
    merged, fits, clear = _merged(selected, rest)
    if not fits:
        own, layout = (flatten(tree, with_none=True)[1] for tree in (selected, rest))
        raise ValueError(f"merge needs equal structures, got {own} and {layout}.")
    if not clear:
        both = {path for path, _ in leaves_with_paths(selected)}
        twice = [path for path, _ in leaves_with_paths(rest) if path in both]
        raise ValueError(f"leaves present in both trees: {listing(twice)}.")
    return merged


def _merged(left: Any, right: Any) -> tuple[Any, bool, bool]:
    """Both together, whether containers agree, and whether no leaf is in both."""
    if isinstance(left, optax.MaskedNode) or (left is None and _is_place(right)):
        return right, True, True
    if isinstance(right, optax.MaskedNode) or (right is None and _is_place(left)):
        return left, True, True
    (ours, own), (theirs, layout) = _children(left), _children(right)
    if own != layout:
        return None, False, True
    if _is_place(left):
        return left, True, False
    parts = [_merged(x, y) for x, y in zip(ours, theirs, strict=True)]
    tree = jax.tree.unflatten(layout, [part for part, _, _ in parts])
    return tree, all(fits for _, fits, _ in parts), all(clear for *_, clear in parts)


def _children(node: Any) -> tuple[list[Any], Any]:
    """The nodes right below one, and its container."""
    return jax.tree.flatten(node, is_leaf=lambda below: below is not node)


def _is_place(node: Any) -> bool:
    """Whether a node is a leaf or a hole, and no container."""
    below = _children(node)[0]
    return is_hole(node) or isinstance(node, OneLeaf) or any(x is node for x in below)
