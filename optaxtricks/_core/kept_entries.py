"""The entries that a mask array keeps, by their positions."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .entry_masks import mask_arrays


class KeptEntries(NamedTuple):
    """What one mask array keeps.

    Attributes:
      path: of the array in its mask.
      shape: of the array, which broadcasts to its leaf.
      positions: int32 row-major positions in the array, ascending.
    """

    path: str
    shape: tuple[int, ...]
    positions: np.ndarray

    def count(self, leaf: Any) -> int:
        """How many entries of a leaf are kept."""
        copies = math.prod(jnp.shape(leaf)) // max(math.prod(self.shape), 1)
        return copies * self.positions.size

    def within(self, leaf: Any) -> np.ndarray:
        """Their positions in a leaf, as those in the array are given."""
        if jnp.shape(leaf) == self.shape:
            return self.positions
        _check_size(self.path, math.prod(jnp.shape(leaf)))
        mask = np.zeros(self.shape, bool)
        mask.flat[self.positions] = True
        return _positions(np.broadcast_to(mask, jnp.shape(leaf)))


def kept_entries(mask: Any) -> dict[str, KeptEntries]:
    """What each array of a checked mask keeps, by path.

    Raises:
      TypeError: an array is traced.
      ValueError: an array has too many entries for int32.
    """
    return {path: _kept(path, array) for path, array in mask_arrays(mask).items()}


def _kept(path: str, mask: Any) -> KeptEntries:
    if isinstance(mask, jax.core.Tracer):
        raise TypeError(
            f"mask must be concrete, as it decides how large the state is, but its "
            f"leaf at {path!r} is traced."
        )
    _check_size(path, mask.size)
    return KeptEntries(path, mask.shape, _positions(np.asarray(mask)))


def _check_size(path: str, size: int) -> None:
    if size >= 2**31:
        raise ValueError(
            f"the leaf at {path!r} has {size} entries, more than int32 indices reach; "
            "split it or use keep_entries."
        )


def _positions(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask).astype(np.int32)
