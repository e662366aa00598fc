"""Bool arrays at one bit an entry, eight neighbours along one axis to a byte.

The axis is chosen by shape alone. It is not the last one where that can be helped:
XLA then reads one byte row for eight rows of the array in the very loop that uses
the bits, and that loop stays vectorised.
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

    def cost(axis: int) -> tuple[bool, bool, int, int]:
        size = shape[axis]
        wasteful = 8 * _bytes(size) > 1.125 * size
        # A large power of two is what a mesh axis divides into multiples of eight.
        return wasteful, axis == last, -math.gcd(size, 2**20), axis

    return min(range(len(shape)), key=cost)


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
    spec = typed_sharding(bits)
    split = jnp.expand_dims(bits, axis + 1) >> _shifts(like.ndim, axis)
    split = split & np.uint8(1)
    shape = (*bits.shape[:axis], 8 * bits.shape[axis], *bits.shape[axis + 1 :])
    whole = jax.lax.reshape(split, shape, out_sharding=spec)
    whole = jax.lax.slice_in_dim(whole, 0, like.shape[axis], axis=axis)
    wanted = typed_sharding(like)
    if wanted is not None:
        whole = jax.sharding.reshard(whole, wanted)
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
    return jnp.sum(split << _shifts(mask.ndim, axis), axis=axis + 1, dtype=jnp.uint8)


def _shifts(ndim: int, axis: int) -> np.ndarray:
    shape = [1] * (ndim + 1)
    shape[axis + 1] = 8
    return np.arange(8, dtype=np.uint8).reshape(shape)


def _bytes(size: int) -> int:
    return -(-size // 8)
