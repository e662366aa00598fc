"""Kept pieces taken out of a leaf and put back: whole rows, or tiles of (8, 128).

What `entry_blocks` does with entries, where a mask keeps all entries of a piece or
none. A list has a number for each piece, and as many entries as the piece has stand
beside it. A piece is a run of memory, on a TPU a tile of it: nothing is handled entry
by entry.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from .block_grids import block_of, coordinates, cut, grid_of, lists_sharding, placed
from .entry_blocks import stored
from .entry_masks import negative_zero
from .shardings import on_device, reshard_like

_Shape: TypeAlias = tuple[int, ...]

_INSIDE = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS


def gathered(
    leaf: jax.Array, positions: jax.Array, *, piece: _Shape, index: Any
) -> jax.Array:
    """The kept pieces of a leaf, in the order of their positions.

    Of the shape of the positions, and of a piece without leading axes of 1 behind it.
    `index` is that of :func:`entry_blocks.gathered`.
    """
    leaf = on_device(leaf)
    take = functools.partial(_gathered, piece=piece, index=jnp.dtype(index).name)
    return placed(take, lists_sharding(leaf, positions.shape))(leaf, positions)


def scattered(
    values: jax.Array, positions: jax.Array, like: jax.Array, *, piece: _Shape
) -> jax.Array:
    """An array like `like` of kept pieces' values; elsewhere what changes nothing."""
    grid = grid_of(like.shape, positions.shape)
    block = block_of(block_of(like.shape, piece), grid)
    # Devices between which a block is cut add up what they find, and -0.0 + 0.0 is 0.0.
    whole = all(
        blocks % jax.device_count() == 0 or pieces == 1
        for blocks, pieces in zip(grid, block, strict=True)
    )
    put = functools.partial(_scattered, shape=like.shape, piece=piece, padded=whole)
    there = placed(put, lists_sharding(like, positions.shape))(values, positions)
    return reshard_like(there, like)


# Jitted, so that leaves of one shape share one trace.
@functools.partial(jax.jit, static_argnames=("piece", "index"))
def _gathered(
    leaf: jax.Array, positions: jax.Array, piece: _Shape, index: str
) -> jax.Array:
    grid = grid_of(leaf.shape, positions.shape)
    block = block_of(block_of(leaf.shape, piece), grid)
    at = positions.reshape(*grid, -1).astype(index)
    inside = at < math.prod(block)
    where = jnp.stack(coordinates(jnp.minimum(at, math.prod(block) - 1), block), -1)
    parts = leaf.reshape(cut(grid, block, piece))
    # A TPU holds a matrix tile by tile; elsewhere to have tiles in a row is to copy.
    kept = jax.lax.platform_dependent(parts, where, tpu=_from_tiles, default=_from_rows)
    kept = kept.reshape(*positions.shape, *written_out(piece))
    inside = inside.reshape(positions.shape + (1,) * (kept.ndim - positions.ndim))
    return jnp.where(inside, kept, jnp.zeros_like(kept))


def _from_rows(parts: jax.Array, where: jax.Array) -> jax.Array:
    """The pieces at some places, of axes (block, piece, entry) for each of a leaf."""
    axes = where.shape[-1]
    blocks, pieces = range(0, 3 * axes, 3), range(1, 3 * axes, 3)
    return _slices(parts, where, blocks, pieces, range(axes), mode=_INSIDE)


def _from_tiles(parts: jax.Array, where: jax.Array) -> jax.Array:
    """The same of a leaf that lies in memory piece by piece."""
    axes = where.shape[-1]
    parts = jnp.moveaxis(parts, range(2, 3 * axes, 3), range(2 * axes, 3 * axes))
    blocks, pieces = range(0, 2 * axes, 2), range(1, 2 * axes, 2)
    return _slices(parts, where, blocks, pieces, range(axes), mode=_INSIDE)


@functools.partial(jax.jit, static_argnames=("shape", "piece", "padded"))
def _scattered(
    values: jax.Array, positions: jax.Array, shape: _Shape, piece: _Shape, padded: bool
) -> jax.Array:
    grid = grid_of(shape, positions.shape)
    block = block_of(block_of(shape, piece), grid)
    axes, listed = len(grid), positions.shape[-1]
    none = jnp.full((math.prod(block),), listed, jnp.int32)
    order = jnp.arange(listed, dtype=jnp.int32)
    number = lambda at: none.at[at].set(order, mode="drop")
    for _ in grid:
        number = jax.vmap(number)
    numbers = number(positions.reshape(*grid, -1)).reshape(*grid, *block)
    # To reorder numbers is cheap, and then pieces are looked up in the leaf's order.
    numbers = numbers.transpose(
        [i for axis in range(axes) for i in (axis, axis + axes)]
    )
    found = jax.lax.platform_dependent(
        values.reshape(*grid, listed, *piece),
        numbers[..., None],
        tpu=_looked_up_padded if padded else _looked_up,
        default=_looked_up,
    )
    for i in range(axes):
        found = jnp.moveaxis(found, 2 * axes + i, 3 * i + 2)
    return found.reshape(shape)


def _looked_up(values: jax.Array, numbers: jax.Array) -> jax.Array:
    """The pieces of these numbers; past the last, what changes nothing."""
    return _at_numbers(values, numbers, mode="fill", fill_value=negative_zero(values))


def _looked_up_padded(values: jax.Array, numbers: jax.Array) -> jax.Array:
    """The same of lists with such a piece at the end: to choose is a pass of a TPU."""
    fill = jnp.full((), negative_zero(values), values.dtype)
    more = [(0, int(i == numbers.ndim // 2), 0) for i in range(values.ndim)]
    return _at_numbers(jax.lax.pad(values, fill, more), numbers, mode=_INSIDE)


def _at_numbers(values: jax.Array, numbers: jax.Array, **options: Any) -> jax.Array:
    """Pieces, listed after axes of blocks, at numbers whose axes are (block, piece)."""
    axes = numbers.ndim // 2
    grid = range(0, 2 * axes, 2)
    return _slices(stored(values), numbers, range(axes), [axes], grid, **options)


def _slices(
    array: jax.Array,
    where: jax.Array,
    blocks: Sequence[int],
    pieces: Sequence[int],
    blocks_of_where: Sequence[int],
    **options: Any,
) -> jax.Array:
    """The slices at places along the axes of pieces, for each along those of blocks."""
    places = where.ndim - 1
    sizes = [1 if i in (*blocks, *pieces) else n for i, n in enumerate(array.shape)]
    rest = array.ndim - len(blocks) - len(pieces)
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=tuple(range(places, places + rest)),
        collapsed_slice_dims=tuple(pieces),
        start_index_map=tuple(pieces),
        operand_batching_dims=tuple(blocks),
        start_indices_batching_dims=tuple(blocks_of_where),
    )
    return jax.lax.gather(array, where, numbers, sizes, **options)


def written_out(piece: Sequence[int]) -> _Shape:
    """The axes of a piece without leading ones of 1."""
    sizes = [*piece]
    while sizes and sizes[0] == 1:
        del sizes[0]
    return tuple(sizes)
