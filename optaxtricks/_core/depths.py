"""How many layers lie above each leaf, by numbers in paths and by layers of stacks."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .known_paths import known_paths
from .layers import Stacked, layer_seen
from .paths import holes, leaves_with_paths
from .selectors import Selector, hole_matches, matches
from .update_checks import stack_axes


class Layering(NamedTuple):
    """Where layers are found, and what lies below, beside and above them."""

    layers: re.Pattern[str]
    stacked: Stacked | None
    first: Selector | None
    top: Selector | None
    last: Selector | None


class _Layers(NamedTuple):
    """Of one leaf: its tower, its layer or layers, and how many there are at least."""

    tower: str
    index: int | np.ndarray
    count: int


Above = int | np.ndarray | None


def layers_above(tree: Any, how: Layering) -> list[Above]:
    """The number of layers above each leaf, a vector for a stack.

    None is for what lies above the layers itself.

    Raises:
      ValueError: no layer, towers of different height, a leaf in two places, and as a
        selector.
    """
    named = leaves_with_paths(tree)
    if not named:
        return []
    places = _places(tree, how)
    axes = stack_axes(tree, how.stacked)
    if seen := [path for path, _ in named if layer_seen(path) is not None]:
        raise ValueError(
            f"depths need all layers, but per_layer shows one of {seen[0]!r} at a "
            "time: put scale_by_depth outside of it."
        )
    found = [
        None if place else _layers(path, leaf, axis, how.layers)
        for (path, leaf), place, axis in zip(named, places, axes, strict=True)
    ]
    count = _count([*found, *_masked_out(tree, how)], tree, how)
    above: dict[str, Above] = {"first": count, "top": 0, "last": None, "": None}
    return [
        above[place] if layers is None else count - 1 - layers.index
        for layers, place in zip(found, places, strict=True)
    ]


def _selectors(how: Layering) -> dict[str, Selector]:
    chosen = {"first": how.first, "top": how.top, "last": how.last}
    return {name: selector for name, selector in chosen.items() if selector is not None}


def _places(tree: Any, how: Layering) -> list[str]:
    """For each leaf the argument that chooses it; "" if none does."""
    paths = [path for path, _ in leaves_with_paths(tree)]
    places = [""] * len(paths)
    for name, selector in _selectors(how).items():
        for i, chosen in enumerate(matches(tree, selector, name=name)):
            if chosen and places[i]:
                raise ValueError(
                    f"the leaf at {paths[i]!r} is in both {places[i]} and {name}."
                )
            places[i] = name if chosen else places[i]
    return places


def _masked_out(tree: Any, how: Layering) -> list[_Layers | None]:
    """The layers of leaves that Optax took out, which count all the same."""
    gaps = holes(tree)
    elsewhere = [False] * len(gaps)
    for name, selector in _selectors(how).items():
        covered = hole_matches(tree, selector, name=name)
        elsewhere = [a or b for a, b in zip(elsewhere, covered, strict=True)]
    pairs = zip(gaps, elsewhere, strict=True)
    return [_numbered(path, how.layers) for path, placed in pairs if not placed]


def _layers(
    path: str, leaf: Any, axis: int | None, pattern: re.Pattern[str]
) -> _Layers | None:
    numbered = _numbered(path, pattern)
    if axis is None:
        return numbered
    if numbered is not None:
        raise ValueError(
            f"the leaf at {path!r} is a stack, but layers {pattern.pattern!r} finds "
            f"layer {numbered.index} in its path: only one of them may count layers."
        )
    count = leaf.shape[axis]
    return _Layers(path, np.arange(count), count)


def _numbered(path: str, pattern: re.Pattern[str]) -> _Layers | None:
    """The layer whose number stands in a path; its tower is what stands before."""
    match = pattern.search(path)
    if match is None:
        return None
    number = match.group(1)
    if number is None or not number.isdecimal():
        raise ValueError(
            f"group 1 of layers {pattern.pattern!r} must be a whole number, got "
            f"{number!r} at {path!r}."
        )
    return _Layers(path[: match.start()], int(number), int(number) + 1)


def _count(found: Sequence[_Layers | None], tree: Any, how: Layering) -> int:
    """The number of layers, the same in all towers."""
    counts: dict[str, int] = {}
    for layers in found:
        if layers is not None:
            counts[layers.tower] = max(layers.count, counts.get(layers.tower, 0))
    if not counts:
        paths = [path for path, _ in leaves_with_paths(tree)] + holes(tree)
        stacks = "; if layers are stacked in one leaf, say so by `stacked`"
        if how.stacked is not None:
            stacks = ", and `stacked` none that is not masked out"
        placed = _selectors(how)
        among = f" in what {', '.join(placed)} leave over" if placed else ""
        raise ValueError(
            f"layers {how.layers.pattern!r} finds no layer{among}{stacks}. "
            f"{known_paths(paths, how.layers.pattern)}"
        )
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"towers differ in their number of layers: {counts}. Use one "
            "transformation for each, whose `layers` and `stacked` find it alone."
        )
    return next(iter(counts.values()))
