"""Groups of leaves: one label for each, however the labels were given."""

from collections.abc import Callable
from typing import Any, TypeAlias

from .choices import is_function
from .paths import leaves_with_paths, listing, nearest, table_of

Labels: TypeAlias = Callable[[Any], Any] | str | Any
"""A callable from a tree to a tree of strings, or such a tree, or a prefix of one."""


def group_labels(tree: Any, labels: Labels, *, name: str = "labels") -> list[str]:
    """The label of each leaf of `tree`, in leaf order, matched by path.

    Raises:
      ValueError: a leaf without a label, or two labels at one path.
      TypeError: something else than strings.
    """
    paths = [path for path, _ in leaves_with_paths(tree)]
    if not paths:
        return []
    called: Any = labels
    entries = leaves_with_paths(called(tree) if is_function(labels) else labels)
    if wrong := [path for path, label in entries if not isinstance(label, str)]:
        raise TypeError(
            f"{name} must be strings, but they are not at {listing(wrong)}."
        )
    table = table_of(entries, name=name)
    return [table[nearest(table, path, name=name)] for path in paths]
