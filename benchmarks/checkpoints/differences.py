"""What tells a checkpoint of this run from one of another run, in words."""

import json
from collections.abc import Mapping
from typing import Any

import jax

NOTHING = "nothing"


def layout(tree: Any) -> dict[str, str]:
    """By path: dtype and shape of a leaf, or the type of a node without leaves."""
    bare = lambda node: node is None or not jax.tree.leaves(node)
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): _kind(node)
        for keys, node in jax.tree.leaves_with_path(tree, is_leaf=bare)
    }


def _kind(node: Any) -> str:
    if hasattr(node, "shape") and hasattr(node, "dtype"):
        return f"{node.dtype}{list(node.shape)}"
    return type(node).__name__


def layout_differences(saved: Mapping[str, str], current: Mapping[str, str]) -> list:
    """How a saved tree differs from this run's."""
    found = []
    for path in dict.fromkeys([*current, *saved]):
        there, here = saved.get(path), current.get(path)
        if there is None:
            found.append(f"has no leaf {path!r}, which this run has as {here}")
        elif here is None:
            found.append(f"has a leaf {path!r}, {there}, which this run has not")
        elif there != here:
            found.append(f"has leaf {path!r} as {there}, this run has it as {here}")
    return found


def settings_differences(saved: Any, current: Any, name: str = "") -> list[str]:
    """How saved settings differ from this run's; each goes after "was written"."""
    if isinstance(saved, Mapping) and isinstance(current, Mapping):
        return [
            text
            for key in dict.fromkeys([*current, *saved])
            for text in settings_differences(
                saved.get(key, NOTHING),
                current.get(key, NOTHING),
                f"{name}.{key}" if name else key,
            )
        ]
    if saved == json.loads(json.dumps(current)):  # a tuple comes back as a list
        return []
    return [f"with {name} {saved}, this run has {current}"]
