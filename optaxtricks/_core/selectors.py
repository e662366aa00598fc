"""Selectors: one way to say "which leaves", resolved by path."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from .choices import is_function
from .known_paths import known_paths
from .paths import holes, leaves_with_paths, listing, nearest, table_of
from .patterns import whole_numbers

Selector: TypeAlias = str | re.Pattern[str] | Callable[[str, Any], bool] | Any
"""A regular expression searched in the leaf's path, numbers at its ends being whole
ones, a predicate of (path, leaf), or a tree of bools (or a prefix of one) laid out like
the parameters."""


def matches(tree: Any, selector: Selector, *, name: str = "selector") -> list[bool]:
    """Which leaves of `tree` are selected, in leaf order.

    Raises:
      TypeError: the selector is none of the four kinds, or a predicate returned
        something else than a bool.
      ValueError: an invalid pattern, a tree of bools that does not cover `tree` or
        reaches beyond it, or no leaf at all is selected. Leaves masked out by Optax
        count as leaves here, and a tree without leaves (Optax's placeholder) selects
        nothing.
    """
    leaves, gaps = leaves_with_paths(tree), holes(tree)
    # Optax's placeholders have no leaves, and so nothing to hold a selector to.
    paths = [path for path, _ in leaves] + gaps if leaves else []
    chosen = _predicate(selector, paths, name)
    found = [chosen(path, leaf) for path, leaf in leaves]
    # A predicate may look at the leaf, which a hole no longer has.
    path_only = not is_function(selector)
    if leaves and not any(found):
        if not (path_only and any(_covers(chosen, path) for path in gaps)):
            raise ValueError(
                f"{name} {describe(selector)} matches no leaf. "
                f"{known_paths(paths, _text(selector))}"
            )
    return found


def hole_matches(tree: Any, selector: Selector, *, name: str) -> list[bool]:
    """Which holes of `tree` are selected, in their order, as far as paths say it.

    A predicate selects none: it may look at the leaf.
    """
    leaves, gaps = leaves_with_paths(tree), holes(tree)
    if is_function(selector):
        return [False] * len(gaps)
    chosen = _predicate(selector, [path for path, _ in leaves] + gaps, name)
    return [_covers(chosen, path) for path in gaps]


def proper_matches(tree: Any, selector: Selector, *, name: str) -> list[bool]:
    """As `matches`, for a choice that must leave something over.

    Where Optax masked leaves out, those may be what is left over.
    """
    found, gaps = matches(tree, selector, name=name), holes(tree)
    paths = [path for path, _ in leaves_with_paths(tree)] + gaps
    chosen = _predicate(selector, paths, name)
    rest = is_function(selector) or not all(_covers(chosen, path) for path in gaps)
    if found and all(found) and not (gaps and rest):
        raise ValueError(
            f"{name} {describe(selector)} matches every leaf. Paths: {listing(paths)}."
        )
    return found


def row_matches(tree: Any, selector: Selector, *, name: str) -> list[bool]:
    """As `matches`, for leaves that must have rows: a scalar is an error."""
    found = matches(tree, selector, name=name)
    pairs = zip(leaves_with_paths(tree), found, strict=True)
    if flat := [path for (path, x), c in pairs if c and np.ndim(x) == 0]:
        raise ValueError(
            f"{name} chooses scalars, which have no rows: {listing(flat)}."
        )
    return found


def describe(selector: Selector) -> str:
    """The selector as an error message should show it."""
    if isinstance(selector, re.Pattern):
        return repr(selector.pattern)
    if isinstance(selector, str):
        return repr(selector)
    return "(a predicate)" if is_function(selector) else "(a tree of bools)"


def _text(selector: Selector) -> str:
    """A pattern as text; nothing for what is none."""
    text = getattr(selector, "pattern", selector)
    return text if isinstance(text, str) else ""


def compiled(pattern: str | re.Pattern[str], *, name: str) -> re.Pattern[str]:
    """A pattern, compiled by `whole_numbers`; or an error that names the argument."""
    try:
        return whole_numbers(pattern)
    except re.error as error:
        raise ValueError(
            f"{name} {pattern!r} is not a regular expression: {error}."
        ) from None


def _predicate(
    selector: Selector, paths: list[str], name: str
) -> Callable[[str, Any], bool]:
    if isinstance(selector, str | re.Pattern):
        pattern = compiled(selector, name=name)
        return lambda path, leaf: pattern.search(path) is not None
    if is_function(selector):
        return lambda path, leaf: _as_bool(selector(path, leaf), path, name)
    return _by_prefix(selector, paths, name)


def _covers(chosen: Callable[[str, Any], bool], path: str) -> bool:
    try:
        return chosen(path, None)
    except ValueError:  # a tree of bools says nothing about the hole
        return False


def _as_bool(value: Any, path: str, name: str) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must give a bool for {path!r}, got {value!r}.")
    return bool(value)


def _prefixes(path: str) -> list[str]:
    """The path of a leaf, and those of all the nodes above it."""
    steps = path.split("/")
    return ["/".join(steps[: i + 1]) for i in range(len(steps))]


def _by_prefix(tree: Any, paths: list[str], name: str) -> Callable[[str, Any], bool]:
    """A predicate from a tree of bools: the nearest entry above a leaf decides."""
    entries = leaves_with_paths(tree)
    if not entries or any(not isinstance(v, bool | np.bool_) for _, v in entries):
        raise TypeError(
            f"{name} must be a pattern, a predicate of (path, leaf) or a tree of "
            f"bools, got {jax.tree.map(type, tree)!r}."
        )
    table = table_of([(path, bool(value)) for path, value in entries], name=name)
    reached = {""} | {above for path in paths for above in _prefixes(path)}
    if paths and (idle := [entry for entry in table if entry not in reached]):
        raise ValueError(f"{name} has entries where there is no leaf: {listing(idle)}.")

    return lambda path, leaf: table[nearest(table, path, name=name)]
