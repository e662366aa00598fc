"""Kept entries taken out of a leaf and put back, block by block of the leaf.

A leaf is cut along its axes into a grid of equal blocks, and each block has a list of
the positions that it keeps. Lists have the grid's axes in front, so whatever divides a
leaf over devices divides them too: a compiler sees that no entry leaves its device,
also where it alone knows how the leaf is placed.

A list is as long as the longest; it ends in positions equal to the block's size, which
is past its last. Of what stands there zero is read and nothing is written.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .block_grids import block_of, coordinates, cut, grid_of, lists_sharding, placed
from .entry_masks import negative_zero
from .shardings import on_device, reshard_like
from .tiles import has_tiles

# Of so many entries one is kept where a CPU had better not join blocks.
_FEW = 32

_Shape: TypeAlias = tuple[int, ...]


def gathered(leaf: jax.Array, positions: jax.Array, *, index: Any) -> jax.Array:
    """The kept entries of a leaf, laid out as their positions.

    Where two leaves are read at the same positions, as a gradient and its parameter,
    different dtypes of `index` keep XLA from computing and storing the coordinates
    ahead for both: each loop derives its own.
    """
    leaf = on_device(leaf)
    take = functools.partial(_gathered, index=jnp.dtype(index).name)
    return placed(take, lists_sharding(leaf, positions.shape))(leaf, positions)


def scattered(values: jax.Array, positions: jax.Array, like: jax.Array) -> jax.Array:
    """An array like `like` of kept entries' values; elsewhere what changes nothing."""
    # With one device there is nowhere to go. Of few entries the lists are read faster
    # one by one, however long it takes to write them.
    joined = jax.device_count() == 1 and _FEW * positions.size > like.size
    put = functools.partial(_scattered, shape=like.shape, joined=joined)
    there = placed(put, lists_sharding(like, positions.shape))(values, positions)
    return reshard_like(there, like)


# Jitted, so that leaves of one shape share one trace.
@functools.partial(jax.jit, static_argnames="index")
def _gathered(leaf: jax.Array, positions: jax.Array, index: str) -> jax.Array:
    shape = leaf.shape or (1,)
    grid = grid_of(shape, positions.shape)
    block = block_of(shape, grid)
    at = positions.reshape(*grid, -1).astype(index)
    inside = at < math.prod(block)
    # For a CPU twice as quick as to choose.
    at = jnp.minimum(at, math.prod(block) - 1)
    rows = functools.partial(_take, grid=grid, block=block)
    tiles = functools.partial(_take, grid=grid, block=block, tiled=True)
    kept = jax.lax.platform_dependent(leaf, at, tpu=tiles, default=rows)
    return jnp.where(inside, kept, jnp.zeros_like(kept)).reshape(positions.shape)


@functools.partial(jax.jit, static_argnames=("shape", "joined"))
def _scattered(
    values: jax.Array, positions: jax.Array, shape: tuple[int, ...], joined: bool
) -> jax.Array:
    grid = grid_of(shape or (1,), positions.shape)
    block = block_of(shape or (1,), grid)
    values, positions = (x.reshape(*grid, -1) for x in (values, positions))
    put = functools.partial(_put, grid=grid, block=block)
    looked_up = functools.partial(_looked_up, grid=grid, block=block)
    # A TPU looks entries up one by one, and so is quickest with the fewest. A CPU is
    # several times as quick with one index as with one for each axis of the grid.
    leaf = jax.lax.platform_dependent(
        values,
        positions,
        tpu=put,
        cpu=functools.partial(looked_up, joined=joined),
        default=looked_up,
    )
    return leaf.reshape(shape)


def _take(
    leaf: jax.Array, at: jax.Array, *, grid: _Shape, block: _Shape, tiled: bool = False
) -> jax.Array:
    """The entries at positions in each block."""
    where = coordinates(at, block)
    parts = leaf.reshape(cut(grid, block))
    if tiled and has_tiles(block):
        parts, where = _tiles(parts), _tile_coordinates(where)
    take = lambda part, *where: part.at[where].get(mode="promise_in_bounds")
    for axis in reversed(range(len(grid))):
        take = jax.vmap(take, in_axes=(axis, *[0] * len(where)))
    return take(parts, *where)


def _put(
    values: jax.Array, positions: jax.Array, *, grid: _Shape, block: _Shape
) -> jax.Array:
    """Blocks of nothing, into which each value is written."""
    where = coordinates(positions.astype(jnp.int32), block)
    if tiled := has_tiles(block):
        block, where = _tiled_shape(block), _tile_coordinates(where)
    empty = jnp.full(block, negative_zero(values), values.dtype)
    put = lambda value, *where: empty.at[where].set(
        value, mode="drop", unique_indices=True
    )
    for axis in reversed(range(len(grid))):
        put = jax.vmap(put, out_axes=axis)
    parts = put(values, *where)
    return _untiled(parts) if tiled else parts


def _looked_up(
    values: jax.Array,
    positions: jax.Array,
    *,
    grid: _Shape,
    block: _Shape,
    joined: bool = False,
) -> jax.Array:
    """Blocks whose every entry looks its value up, so that an addition fuses with it.

    For each word of entries of a row it reads which are kept, and how many were before.
    Where blocks are `joined`, it counts in all lists as in one.
    """
    # A number of 16 bits and as many entries share a word; else each has one.
    bits = 16 if values.shape[-1] < 2**16 else 32
    axes = [axis for i in range(len(grid)) for axis in (i, i + len(grid))]

    def for_each(words: jax.Array) -> jax.Array:
        rows = words.reshape(*grid, *block[:-1], -1).transpose(axes)
        return jnp.repeat(rows, bits, axis=-1)[..., : block[-1]]

    words = list(map(for_each, _words(positions, grid, block, bits, joined)))
    kept, number = words if len(words) == 2 else (words[0], words[0] >> bits)
    bit = jax.lax.broadcasted_iota(jnp.uint32, kept.shape, kept.ndim - 1) % bits
    number += jax.lax.population_count(kept & ((jnp.uint32(1) << bit) - 1))
    values = stored(values.reshape(-1) if joined else values)
    number = jnp.minimum(number, values.shape[-1] - 1).astype(jnp.int32)
    look = lambda value, where: value.at[where].get(mode="promise_in_bounds")
    for axis in [] if joined else reversed(range(len(grid))):
        look = jax.vmap(look, in_axes=(0, axis), out_axes=axis)
    found = look(values, number)
    nothing = jnp.full_like(found, negative_zero(values))
    return jnp.where((kept >> bit) & 1 == 1, found, nothing)


def stored(values: jax.Array) -> jax.Array:
    """The values, computed before they are looked up.

    Else XLA computes them in the addition's loop, which then reads parameters at other
    places than it writes, so that it cannot write in place. XLA:CPU drops barriers, but
    ends a loop before a scatter: of the first and last values to where they are.
    """
    ends = np.array([0, -1])
    return jax.lax.platform_dependent(
        values,
        cpu=lambda values: values.at[..., ends].set(values[..., ends]),
        default=jax.lax.optimization_barrier,
    )


def _words(
    positions: jax.Array, grid: _Shape, block: _Shape, bits: int, joined: bool
) -> list[jax.Array]:
    """For so many entries of a row of a block: a bit for each, the first's number.

    In one word or in two. Where blocks are `joined`, the second counts in all lists.
    """
    words, at = -(-block[-1] // bits), positions.astype(jnp.uint32)
    row, column = coordinates(at, (math.prod(block[:-1]), block[-1]))
    word, bit = row * words + column // bits, jnp.uint32(1) << column % bits
    first = jnp.ones_like(word[..., :1], bool)
    first = jnp.concatenate([first, word[..., 1:] != word[..., :-1]], axis=-1)
    number = jax.lax.broadcasted_iota(jnp.uint32, word.shape, word.ndim - 1)
    number = jnp.where(first, number, 0)
    size = math.prod(block[:-1]) * words
    part, pair = bit | number << bits, ()
    if bits == 32:
        part, pair = jnp.stack([bit, number], -1), (2,)
    added = lambda word, part, size=size: (
        jnp.zeros((size, *pair), jnp.uint32).at[word].add(part, mode="drop")
    )
    if joined:
        # One past the last of a block is the first of the next: not what is meant.
        end = math.prod(grid) * size
        word = jnp.where(word < size, word + _firsts(grid, size)[..., None], end)
        table = added(word, part, end).reshape(*grid, size, *pair)
    else:
        for _ in grid:
            added = jax.vmap(added)
        table = added(word, part)
    words = [table] if bits < 32 else [table[..., 0], table[..., 1]]
    if not joined:
        return words
    number = words[-1] >> bits if bits < 32 else words[-1]
    return [words[0], number + _firsts(grid, positions.shape[-1])[..., None]]


def _firsts(grid: Sequence[int], size: int) -> jax.Array:
    """The number of each block's first entry, where each has so many."""
    return jnp.arange(math.prod(grid), dtype=jnp.uint32).reshape(grid) * size


# A TPU holds a matrix as tiles of (8, 128), so that blocks of it lie apart only as
# tiles do: cut into blocks of rows of entries it would be copied.
def _tiled_shape(block: _Shape) -> _Shape:
    return (*block[:-2], block[-2] // 8, block[-1] // 128, 8, 128)


def _tiles(parts: jax.Array) -> jax.Array:
    """Of axes (..., grid, rows, grid, columns), the last of tiles moved to the end."""
    *others, rows, grid, columns = parts.shape
    split = parts.reshape(*others, rows // 8, 8, grid, columns // 128, 128)
    return jnp.moveaxis(split, -4, -2)


def _untiled(tiles: jax.Array) -> jax.Array:
    *others, rows, grid, columns, _, _ = tiles.shape
    split = jnp.moveaxis(tiles, -2, -4)
    return split.reshape(*others, rows * 8, grid, columns * 128)


def _tile_coordinates(where: Sequence[jax.Array]) -> list[jax.Array]:
    *others, row, column = where
    return [*others, row >> 3, column >> 7, row & 7, column & 127]
