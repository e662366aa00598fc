"""Bool arrays at one bit an entry, eight neighbours along one axis to a byte.

The axis is chosen by shape alone: one that eight divides and, where that can be had,
not the last. XLA then reads one row of bytes for eight rows of the array in the very
loop that uses the bits, and that loop stays vectorised.

An array that is to broadcast to a leaf stays as it is until it is used.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .shardings import typed_sharding


class PackedMask:
    """The bits of a bool array, for leaves of its shape and those it broadcasts to."""

    def __init__(self, mask: Any):
        self._shape = tuple(mask.shape)
        self._full = pack(mask)
        # Here and not in `init`, where leaves may be on another kind of mesh.
        self._cut = self._full.squeeze(tuple(range(_rank(self._shape), mask.ndim)))

    def placed_like(self, like: Any) -> jax.Array:
        """A fresh copy of the bits for the leaf `like` where they belong."""
        leaf = np.shape(like)
        bits = self._full if leaf == self._shape else self._cut
        place = lambda sharding: packed_sharding(sharding, self._shape, leaf)
        if isinstance(like, jax.core.Tracer):
            typed, bits = typed_sharding(like), jnp.array(bits)
            return bits if typed is None else jax.sharding.reshard(bits, place(typed))
        if isinstance(like, jax.Array) and like.committed:
            bits = jax.device_put(bits, place(like.sharding))
        return jnp.array(bits, copy=True)


def packing_axis(shape: Sequence[int]) -> int:
    """The axis along which an array of this shape is packed."""
    last = len(shape) - 1

    def cost(axis: int) -> tuple[bool, bool, bool, int, int]:
        size = shape[axis]
        wasteful = 8 * _bytes(size) > 1.125 * size
        # A large power of two is what a mesh axis divides into multiples of eight.
        return size % 8 > 0, wasteful, axis == last, -math.gcd(size, 2**20), axis

    axis = min(range(len(shape)), key=cost)
    # A byte of such an array would not tell which of its axes is packed.
    return max(_rank(shape) - 1, 0) if shape[axis] <= 8 and 1 in shape else axis


def packed_shape(shape: Sequence[int], leaf: Sequence[int]) -> tuple[int, ...]:
    """The shape of the bits of an array of this shape for a leaf of that shape.

    Where it broadcasts, they lack its last axes of size 1. No two arrays of different
    shapes have bits of the same shape for one leaf.
    """
    if not shape:
        return ()
    axis = packing_axis(shape)
    bits = (*shape[:axis], _bytes(shape[axis]), *shape[axis + 1 :])
    return bits if tuple(shape) == tuple(leaf) else bits[: _rank(shape)]


def pack(mask: Any) -> Any:
    """The bits of a bool array; a NumPy array gives a NumPy array."""
    if mask.ndim == 0:
        return mask.astype(np.uint8)
    axis = packing_axis(mask.shape)
    if isinstance(mask, np.ndarray):
        return np.packbits(mask, axis=axis, bitorder="little")
    return _pack(mask, axis)


def unpack(bits: jax.Array, shape: Sequence[int], like: jax.Array) -> jax.Array:
    """The bool array of this shape behind `bits`, which broadcasts to `like`.

    On Explicit axes it is sharded as `like`, but whole along its axes of size 1.
    """
    if like.ndim == 0:
        return bits != 0
    axis = packing_axis(shape)
    size, spec = shape[axis], typed_sharding(like)
    if spec is not None:
        spec = _whole_along_ones(spec, shape)
    bits = jnp.expand_dims(bits, tuple(range(bits.ndim, like.ndim)))
    if size % 8 and spec is None:
        # By index and not by reshaping and cutting off, which the SPMD partitioner
        # answers with an exchange between neighbours where the axis is sharded.
        index = np.arange(size)
        spread = jnp.take(bits, index // 8, axis=axis, mode="clip")
        return (spread >> _along(axis, like.ndim, index % 8)) & np.uint8(1) != 0
    split = jnp.expand_dims(bits, axis + 1) >> _along(axis + 1, like.ndim + 1, range(8))
    shape = (*bits.shape[:axis], 8 * bits.shape[axis], *bits.shape[axis + 1 :])
    whole = jax.lax.reshape(
        split & np.uint8(1), shape, out_sharding=typed_sharding(bits)
    )
    whole = jax.lax.slice_in_dim(whole, 0, size, axis=axis)
    if spec is not None:
        whole = jax.sharding.reshard(whole, spec)
    return whole != 0


def packed_sharding(sharding: Any, shape: Sequence[int], leaf: Sequence[int]) -> Any:
    """Where the bits of an array of this shape belong, for a leaf of this sharding.

    As the leaf itself, but in the devices' own memory, whole along axes of size 1 and,
    where a device would hold a part of a byte, along the packed axis.
    """
    # Leaves kept in a host's memory come over for a step; their few bits are there.
    if not isinstance(sharding, NamedSharding) or not shape:
        return sharding.with_memory_kind(None)
    axis, rank = packing_axis(shape), len(packed_shape(shape, leaf))
    spec: list[Any] = [*_whole_along_ones(sharding, shape).spec]
    names = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
    devices = math.prod(sharding.mesh.shape[name] for name in names if name)
    if shape[axis] % (8 * devices):
        spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec[:rank]))


def _pack(mask: jax.Array, axis: int) -> jax.Array:
    typed, split_spec = typed_sharding(mask), None
    if typed is not None:
        kept = packed_sharding(typed, mask.shape, mask.shape)
        mask = jax.sharding.reshard(mask, kept)
        spec = [*kept.spec[: axis + 1], None, *kept.spec[axis + 1 :]]
        split_spec = NamedSharding(kept.mesh, PartitionSpec(*spec))
    count = _bytes(mask.shape[axis])
    pads = [(0, 0)] * mask.ndim
    pads[axis] = (0, 8 * count - mask.shape[axis])
    padded = jnp.pad(mask, pads).astype(jnp.uint8)
    shape = (*mask.shape[:axis], count, 8, *mask.shape[axis + 1 :])
    split = jax.lax.reshape(padded, shape, out_sharding=split_spec)
    return jnp.sum(
        split << _along(axis + 1, mask.ndim + 1, range(8)),
        axis=axis + 1,
        dtype=jnp.uint8,
    )


def _along(axis: int, ndim: int, values: Any) -> np.ndarray:
    shape = [-1 if i == axis else 1 for i in range(ndim)]
    return np.array(values, np.uint8).reshape(shape)


def _bytes(size: int) -> int:
    return -(-size // 8)


def _rank(shape: Sequence[int]) -> int:
    """The number of axes up to the last that is not of size 1."""
    return max((i + 1 for i, size in enumerate(shape) if size != 1), default=0)


def _whole_along_ones(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """The sharding of an array of this shape that broadcasts to one sharded so."""
    names = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    spec = [None if n == 1 else name for n, name in zip(shape, names, strict=True)]
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))
