"""Leaves of one tree beside those of another: matched by path, never by position.

A dict has its leaves in the order of their keys, an OrderedDict or a NamedTuple as it
was written: what `init` saw may come in another order than the updates.
"""

from collections.abc import Sequence
from typing import Any

import jax

from .paths import below, flatten, holes, leaves_with_paths, listing


class Beside:
    """The leaves of a part of the state, in the order of those of the updates.

    Args:
      tree: what the state holds, leaf for leaf.
      updates: what it is to be matched with.
      by: who asks, for errors.
      name: what `tree` is, for errors.

    Raises:
      ValueError: a leaf of the one that the other has not, or has in another shape.
    """

    def __init__(self, tree: Any, updates: Any, *, by: str, name: str = "the state"):
        leaves, self._layout = flatten(tree)
        layout = flatten(updates)[1]
        self._order = None
        if layout != self._layout:  # else without the cost of paths
            self._order = _order(_paths(tree), _paths(updates), by=by, name=name)
        self.leaves = _in_order(leaves, self._order)
        _check_shapes(updates, self.leaves, by=by, name=name)

    def rebuilt(self, leaves: Sequence[Any]) -> Any:
        """Such leaves, in the order of the updates, as a tree of its own containers."""
        if self._order is not None:
            back = dict(zip(self._order, leaves, strict=True))
            leaves = [back[i] for i in range(len(back))]
        return jax.tree.unflatten(self._layout, leaves)


def params_like(params: Any, updates: Any, *, by: str) -> Any:
    """The parameters of which there are updates, in the containers of these.

    All arrays else must stand where the updates have holes. What is no array, as the
    functions and strings of a whole model, may stand anywhere else.

    Raises:
      ValueError: a leaf of the one that the other has not, or has in another shape.
    """
    (held, own), layout = flatten(params), flatten(updates)[1]
    if own != layout:  # else without the cost of paths
        want, gaps = _paths(updates), holes(updates)
        held, have = _counting(params, frozenset(want), gaps)
        held = _in_order(held, _order(have, want, by=by, name="params"))
        params = jax.tree.unflatten(layout, held)
    _check_shapes(updates, held, by=by, name="params")
    return params


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array, or a number that JAX takes for one."""
    return hasattr(leaf, "shape") or isinstance(leaf, int | float | complex)


def _counting(
    params: Any, updated: frozenset[str], gaps: Sequence[str]
) -> tuple[list[Any], list[str]]:
    """The leaves that need an update, and their paths."""
    found = [
        (path, leaf)
        for path, leaf in leaves_with_paths(params)
        if path in updated or (is_array(leaf) and not below(path, gaps))
    ]
    return [leaf for _, leaf in found], [path for path, _ in found]


def _paths(tree: Any) -> list[str]:
    return [path for path, _ in leaves_with_paths(tree)]


def _in_order(leaves: list[Any], order: list[int] | None) -> list[Any]:
    return leaves if order is None else [leaves[i] for i in order]


def _order(have: list[str], want: list[str], *, by: str, name: str) -> list[int] | None:
    """For each path of the updates its number among others; None for the same order."""
    numbers, wanted = {path: i for i, path in enumerate(have)}, set(want)
    if len(numbers) < len(have) or len(wanted) < len(want):
        raise ValueError(
            f"{by} cannot match updates with {name}, as two leaves share a path."
        )
    if have == want:
        return None
    missing = [path for path in have if path not in wanted]
    unknown = [path for path in want if path not in numbers]
    if missing or unknown:
        raise ValueError(
            f"{by} got updates with other leaves than {name}: missing "
            f"{listing(missing)}; unknown {listing(unknown)}."
        )
    return [numbers[path] for path in want]


def _check_shapes(updates: Any, others: list[Any], *, by: str, name: str) -> None:
    shapes = [
        (_shape(x), _shape(y)) for x, y in zip(flatten(updates)[0], others, strict=True)
    ]
    if all(shape == other for shape, other in shapes):
        return  # without the cost of paths
    for path, (shape, other) in zip(_paths(updates), shapes, strict=True):
        if shape != other:
            raise ValueError(
                f"{by} got an update of shape {shape} at {path!r}, where {name} has "
                f"shape {other}."
            )


def _shape(leaf: Any) -> tuple[int, ...]:
    """The shape of an array or of what stands for one; numbers have none."""
    return tuple(getattr(leaf, "shape", ()))
