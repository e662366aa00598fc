"""Arguments that are functions, or trees that say something of every leaf."""

from typing import Any

import jax
import numpy as np


def is_function(value: Any) -> bool:
    """Whether an argument is to be called, and is no tree of bools or strings.

    Such a tree can be callable too: a model whose leaves have been replaced.
    """
    return callable(value) and not _says_all(value)


def for_optax(mask: Any) -> Any:
    """A mask that Optax, which calls what can be called, takes for what it is."""
    return (lambda _: mask) if callable(mask) and not is_function(mask) else mask


def _says_all(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    if not leaves or any(leaf is value for leaf in leaves):
        return False
    return all(isinstance(leaf, bool | np.bool_ | str) for leaf in leaves)
