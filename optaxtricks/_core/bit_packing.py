"""Bool arrays at one bit an entry, eight neighbours along one axis to a byte.

The axis is chosen by shape alone: one that eight divides and, where that can be had,
not the last. XLA then reads one row of bytes for eight rows of the array in the very
loop that uses the bits, and that loop stays vectorised.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .shardings import typed_sharding


def packing_axis(shape: Sequence[int]) -> int:
    """The axis along which an array of this shape is packed."""
    last = len(shape) - 1

    def cost(axis: int) -> tuple[bool, bool, bool, int, int]:
        size = shape[axis]
        wasteful = 8 * _bytes(size) > 1.125 * size
        # A large power of two is what a mesh axis divides into multiples of eight.
        return size % 8 > 0, wasteful, axis == last, -math.gcd(size, 2**20), axis

    return min(range(len(shape)), key=cost)


def packed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of the bits of an array of this shape."""
    if not shape:
        return ()
    axis = packing_axis(shape)
    return (*shape[:axis], _bytes(shape[axis]), *shape[axis + 1 :])


def pack(mask: Any) -> Any:
    """The bits of a bool array; a NumPy array gives a NumPy array."""
    if mask.ndim == 0:
        return mask.astype(np.uint8)
    axis = packing_axis(mask.shape)
    if isinstance(mask, np.ndarray):
        return np.packbits(mask, axis=axis, bitorder="little")
    return _pack(mask, axis)


def unpack(bits: jax.Array, like: jax.Array) -> jax.Array:
    """The bool array behind `bits`, shaped and, on Explicit axes, sharded as `like`."""
    if like.ndim == 0:
        return bits != 0
    axis = packing_axis(like.shape)
    size, spec = like.shape[axis], typed_sharding(like)
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


def packed_sharding(sharding: Any, shape: Sequence[int]) -> Any:
    """Where the bits of an array of this sharding and shape belong.

    As the array itself, but whole along the packed axis where a device would hold a
    part of a byte.
    """
    if not isinstance(sharding, NamedSharding) or not shape:
        return sharding
    axis = packing_axis(shape)
    spec: list[Any] = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    names = spec[axis] if isinstance(spec[axis], tuple) else (spec[axis],)
    devices = math.prod(sharding.mesh.shape[name] for name in names if name)
    if shape[axis] % (8 * devices):
        spec[axis] = None
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def placed_like(bits: Any, like: Any) -> jax.Array:
    """A fresh copy of `bits` where the bits of the array `like` belong."""
    if isinstance(like, jax.core.Tracer):
        typed = typed_sharding(like)
        if typed is None:
            return jnp.array(bits)
        return jax.sharding.reshard(jnp.array(bits), packed_sharding(typed, like.shape))
    if isinstance(like, jax.Array) and like.committed:
        bits = jax.device_put(bits, packed_sharding(like.sharding, like.shape))
    return jnp.array(bits, copy=True)


def _pack(mask: jax.Array, axis: int) -> jax.Array:
    typed, split_spec = typed_sharding(mask), None
    if typed is not None:
        kept = packed_sharding(typed, mask.shape)
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
