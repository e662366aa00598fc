"""Digests of parameters and data: is a stored result still a result of these?"""

import hashlib
import zlib
from typing import Any

import jax
import numpy as np

from .paths import leaves_with_paths


def tree_digest(tree: Any) -> str:
    """A digest of paths, dtypes, shapes and bits of all leaves, not of containers."""
    total = hashlib.sha256()
    for path, leaf in leaves_with_paths(tree):
        array = _on_host(leaf)
        total.update(repr((path, array.dtype.name, array.shape)).encode())
        total.update(as_bytes(array))
    return total.hexdigest()


def checksum(tree: Any) -> int:
    """A quick checksum of the bits of all leaves, against a mistake and no more."""
    check = 0
    for _, leaf in leaves_with_paths(tree):
        check = zlib.crc32(as_bytes(_on_host(leaf)), check)
    return check


class StreamDigest:
    """The digest of a stream, wherever one batch ends and the next begins."""

    def __init__(self) -> None:
        self._leaves: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, batch: Any) -> None:
        """Takes in the next batch."""
        for path, leaf in leaves_with_paths(batch):
            array = _on_host(leaf)
            total = self._leaves.setdefault(path, hashlib.sha256())
            if self._shapes.get(path) != array.shape[1:]:
                total.update(repr((array.dtype.name, array.shape[1:])).encode())
                self._shapes[path] = array.shape[1:]
            total.update(as_bytes(array))

    def hexdigest(self) -> str:
        """The digest of all batches so far."""
        parts = {path: part.hexdigest() for path, part in self._leaves.items()}
        return hashlib.sha256(repr(sorted(parts.items())).encode()).hexdigest()


def as_bytes(array: np.ndarray) -> memoryview:
    """The bits of an array of any dtype, in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    ):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
