"""Tiles of a leaf's last two axes, as large as those in which a TPU holds them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from .block_grids import placed

TILE = (8, 128)


def has_tiles(shape: Sequence[int]) -> bool:
    """Whether an array of this shape is made of whole tiles."""
    if len(shape) < 2:
        return False
    return all(n % size == 0 for n, size in zip(shape[-2:], TILE, strict=True))


def tile_sums(leaf: jax.Array) -> jax.Array:
    """The sum of each tile of a concrete array, at least in float32.

    No tile is cut by devices, so that its entries are added up in one order.
    """
    there = _whole_tiles(leaf)
    if there is not None:
        leaf = jax.device_put(leaf, there)
    return placed(_tile_sums, there)(leaf)


def spread_over_tiles(values: jax.Array, like: jax.Array) -> jax.Array:
    """An array of the shape and place of `like`, equal in each tile."""
    spread = placed(_spread, _whole_tiles(like))
    return jax.device_put(spread(values), like.sharding)


def _whole_tiles(leaf: jax.Array) -> NamedSharding | None:
    """The place of a leaf, less what of it would cut tiles."""
    if not isinstance(there := leaf.sharding, NamedSharding):
        return None
    spec = [*there.spec, *[None] * (leaf.ndim - len(there.spec))]
    for axis, size in zip((-2, -1), TILE, strict=True):
        cut = NamedSharding(there.mesh, PartitionSpec(*spec)).shard_shape(leaf.shape)
        if cut[axis] % size:
            spec[axis] = None
    return NamedSharding(there.mesh, PartitionSpec(*spec))


@jax.jit
def _tile_sums(leaf: jax.Array) -> jax.Array:
    rows, columns = (n // size for n, size in zip(leaf.shape[-2:], TILE, strict=True))
    tiles = leaf.reshape(*leaf.shape[:-2], rows, TILE[0], columns, TILE[1])
    return tiles.sum((-3, -1), dtype=np.promote_types(leaf.dtype, np.float32))


@jax.jit
def _spread(values: jax.Array) -> jax.Array:
    *others, rows, columns = values.shape
    shape = (*others, rows, TILE[0], columns, TILE[1])
    tiles = jnp.broadcast_to(values[..., :, None, :, None], shape)
    return tiles.reshape(*others, rows * TILE[0], columns * TILE[1])
