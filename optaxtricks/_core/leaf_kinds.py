"""Matrices and vectors: a leaf may have the axes of the one and be the other."""

from typing import Any

import jax
import numpy as np

from .paths import flatten, leaves_with_paths
from .selectors import Selector, describe, matches

# What Flax, Keras and Haiku call their biases and the scales of normalisation.
_VECTORS = frozenset(("bias", "scale", "beta", "gamma", "offset"))


def kinds(tree: Any, *, vectors: Selector | None, embeddings: Selector | None) -> Any:
    """The label of each leaf, "matrix" or "vector".

    Vectors are the leaves of fewer than two axes, and of the others those that
    `vectors` selects or, where it is None, those whose path ends in such a name.

    Raises:
      ValueError: no matrix is among `embeddings`; as a selector.
    """
    flat = _are_vectors(tree, vectors)
    if embeddings is not None:
        found = matches(tree, embeddings, name="embeddings")
        if any(found) and all(f for f, c in zip(flat, found, strict=True) if c):
            raise ValueError(f"embeddings {describe(embeddings)} choose no matrix.")
    labels = ["vector" if is_vector else "matrix" for is_vector in flat]
    return jax.tree.unflatten(flatten(tree)[1], labels)


def _are_vectors(tree: Any, vectors: Selector | None) -> list[bool]:
    leaves = leaves_with_paths(tree)
    if vectors is None:
        chosen = [path.rpartition("/")[2] in _VECTORS for path, _ in leaves]
    else:
        chosen = matches(tree, vectors, name="vectors")
    return [np.ndim(x) < 2 or c for (_, x), c in zip(leaves, chosen, strict=True)]
