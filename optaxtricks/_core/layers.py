"""Layers in a stack: which axis of a leaf counts them.

A leaf is one tensor, unless it is a stack: then each index of its layer axis is one.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import numpy as np

from .known_paths import known_paths
from .paths import holes, leaves_with_paths, listing
from .selectors import Selector, compiled, matches

Stacked: TypeAlias = Selector | Mapping[str, int]
"""Which leaves are stacks: a selector, for layers on axis 0, or pattern -> layer axis,
the first pattern that is found in a path deciding."""


class Layer(NamedTuple):
    """A layer of a stack that is seen by itself: its number, and of how many."""

    number: jax.Array
    count: int


_seen: contextvars.ContextVar[Mapping[str, Layer] | None] = contextvars.ContextVar(
    "layers_seen", default=None
)


@contextlib.contextmanager
def one_layer_seen(layers: Mapping[str, Layer]) -> Iterator[None]:
    """Says of which leaves, by path, one layer is seen at a time, and which one.

    What `init` derives from a path alone, random words above all, would otherwise come
    out alike for all layers.
    """
    token = _seen.set(layers)
    try:
        yield
    finally:
        _seen.reset(token)


def layer_seen(path: str) -> Layer | None:
    """The layer that is seen at a path; None for a whole leaf."""
    return (_seen.get() or {}).get(path)


def layer_count(path: str) -> int:
    """How many tensors the one that is seen at a path stands for."""
    layer = layer_seen(path)
    return 1 if layer is None else layer.count


def layer_axes(
    tree: Any, stacked: Stacked | None, *, name: str = "stacked"
) -> list[int | None]:
    """The layer axis of each leaf of `tree`, in leaf order; None where it is no stack.

    An axis counts from 0, or from -1 backwards.

    Raises:
      ValueError: as a selector; a pattern that matches no leaf; a leaf that has no such
        axis, named by its path.
      TypeError: neither a selector nor a mapping from patterns to ints.
    """
    named = leaves_with_paths(tree)
    if stacked is None:
        return [None] * len(named)
    if _names_axes(stacked):
        wanted = _by_pattern(tree, stacked, name)
    else:
        wanted = [0 if chosen else None for chosen in matches(tree, stacked, name=name)]
    return [
        None if axis is None else _checked(path, leaf, axis, name)
        for (path, leaf), axis in zip(named, wanted, strict=True)
    ]


def _names_axes(stacked: Stacked) -> TypeGuard[Mapping[str, int]]:
    """Whether it is pattern -> axis, and not a tree of bools that is a dict."""
    if not isinstance(stacked, Mapping) or not stacked:
        return False
    return all(map(_is_int, stacked.values()))


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _by_pattern(tree: Any, axes: Mapping[str, int], name: str) -> list[int | None]:
    paths = [path for path, _ in leaves_with_paths(tree)]
    for pattern in axes:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} must map str to int, got the key {pattern!r}.")
    found = {pattern: compiled(pattern, name=name) for pattern in axes}
    # A leaf that Optax masked out still shows that its pattern is no misprint.
    known = paths + holes(tree)
    idle = [s for s, pattern in found.items() if not any(map(pattern.search, known))]
    if paths and idle:
        raise ValueError(
            f"{name} has patterns that match no leaf: {listing(idle)}. "
            f"{known_paths(known, idle[0])}"
        )
    first = lambda path: next((s for s, p in found.items() if p.search(path)), None)
    return [None if (s := first(path)) is None else int(axes[s]) for path in paths]


def _checked(path: str, leaf: Any, axis: int, name: str) -> int:
    shape = tuple(getattr(leaf, "shape", ()))
    if not -len(shape) <= axis < len(shape):
        raise ValueError(
            f"{name}: the leaf at {path!r} has shape {shape} and so no layer axis "
            f"{axis}."
        )
    return axis % len(shape)
