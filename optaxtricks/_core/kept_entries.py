"""What a mask array keeps, as lists for blocks of a leaf: entries, or whole pieces."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import entry_blocks, piece_blocks
from .block_grids import block_of, cut, lists_sharding
from .entry_masks import mask_arrays
from .piece_blocks import written_out
from .tiles import TILE, has_tiles

# Sharding cuts a leaf into equal parts: blocks are many enough to lie in one part each,
# also on a pod, and where there is a choice whole tiles of (8, 128), as TPUs hold them.
_TILES = ((8, 4, 2, 1), (128, 64, 32, 16))
_MANY_CUTS, _MOST_CUTS = 8, 256
_LEAST_BLOCK, _MOST_BLOCKS = 1024, 4096
# Pieces that are kept whole are listed as such: tiles, or rows at least this long, cut
# into so many parts that devices may have one each.
_LEAST_ROW, _MOST_PARTS = 128, 16
# All lists are as long as the longest: finer grids would cost more memory than this.
_PADDED = 1.25


class _Layout(NamedTuple):
    """The shape of the pieces that are listed, entries or larger, and of the lists."""

    piece: tuple[int, ...]
    lists: tuple[int, ...]


class KeptEntries:
    """What one mask array keeps of its leaf."""

    def __init__(self, path: str, mask: np.ndarray):
        self._path, self._shape = path, mask.shape
        self._positions = _positions(mask)
        self._layouts: dict[tuple[int, ...], _Layout] = {}

    def lists_shape(self, leaf: Any) -> tuple[int, ...]:
        """The shape of a leaf's lists: its grid of blocks, and the most kept in one.

        A leaf of one block has no axes for the grid. Behind them stands an axis of 1
        for each of a piece, so that lists of rows, tiles and entries differ.
        """
        layout = self._layout(jnp.shape(leaf))
        return (*layout.lists, *[1] * len(written_out(layout.piece)))

    def lists(self, leaf: Any) -> np.ndarray:
        """For each block, the row-major positions in it that are kept, ascending.

        They end in the block's size, in the least unsigned integers that hold it.
        """
        layout, mask = self._layout(jnp.shape(leaf)), self._within(jnp.shape(leaf))
        shape, pieces = layout.lists, _pieces(mask, layout.piece)
        blocks = _blocks(pieces, shape[:-1] or (1,) * mask.ndim)
        dtype = next(
            kind
            for kind in (np.uint8, np.uint16, np.uint32)
            if blocks.shape[-1] <= np.iinfo(kind).max
        )
        lists = np.full((len(blocks), shape[-1]), blocks.shape[-1], dtype)
        for row, block in zip(lists, blocks, strict=True):
            found = np.flatnonzero(block)
            row[: found.size] = found
        return lists.reshape(self.lists_shape(leaf))

    def sharding(self, leaf: Any) -> Any:
        """Where the lists belong, beside a leaf whose place is known."""
        return lists_sharding(leaf, self._layout(jnp.shape(leaf)).lists)

    def gathered(self, leaf: jax.Array, lists: jax.Array, *, index: Any) -> jax.Array:
        """What is kept of a leaf, laid out as its lists."""
        piece, shape = self._layout(leaf.shape)
        if math.prod(piece) == 1:
            return entry_blocks.gathered(leaf, lists, index=index)
        lists = lists.reshape(shape)
        return piece_blocks.gathered(leaf, lists, piece=piece, index=index)

    def scattered(
        self, values: jax.Array, lists: jax.Array, like: jax.Array
    ) -> jax.Array:
        """An array like `like` of what is kept; elsewhere of what changes nothing."""
        piece, shape = self._layout(like.shape)
        if math.prod(piece) == 1:
            return entry_blocks.scattered(values, lists, like)
        lists = lists.reshape(shape)
        return piece_blocks.scattered(values, lists, like, piece=piece)

    def _layout(self, shape: tuple[int, ...]) -> _Layout:
        if shape not in self._layouts:
            self._layouts[shape] = _layout(self._within(shape))
        return self._layouts[shape]

    def _within(self, shape: tuple[int, ...]) -> np.ndarray:
        """The mask, written out for a leaf of this shape."""
        _check_size(self._path, math.prod(shape))
        mask = np.zeros(math.prod(self._shape), bool)
        mask[self._positions] = True
        return np.broadcast_to(mask.reshape(self._shape), shape)


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
    return KeptEntries(path, np.asarray(mask))


def _check_size(path: str, size: int) -> None:
    if size >= 2**31:
        raise ValueError(
            f"the leaf at {path!r} has {size} entries, more than int32 indices reach; "
            "split it or use keep_entries."
        )


def _positions(mask: np.ndarray) -> np.ndarray:
    return np.flatnonzero(mask).astype(np.int32)


def _layout(mask: np.ndarray) -> _Layout:
    """The finest grid, and of these the evenest, whose lists are nearly all full."""
    piece = _piece(mask)
    pieces = _pieces(mask, piece)
    finest = _finest_grid(mask.shape, piece)
    counts = _blocks(pieces, finest).sum(axis=-1).reshape(finest)
    best: tuple[Any, ...] = ()
    for grid in itertools.product(*map(_halvings, finest)):
        most = int(_summed(counts, grid).max(initial=0))
        if most * math.prod(grid) <= _PADDED * counts.sum() or math.prod(grid) == 1:
            best = max(best, (math.prod(grid), min(grid, default=1), grid, most))
    blocks, _, grid, most = best
    return _Layout(piece, (*grid, most) if blocks > 1 else (most,))


def _piece(mask: np.ndarray) -> tuple[int, ...]:
    """The pieces of which a mask keeps all entries or none."""
    entry = (1,) * mask.ndim
    ends = [TILE] if has_tiles(mask.shape) else []
    if mask.ndim > 1 and (row := mask.shape[-1]) >= _LEAST_ROW:
        parts = 1 if row % _LEAST_ROW else math.gcd(row // _LEAST_ROW, _MOST_PARTS)
        ends.append((1, row // parts))
    for piece in [(*entry[2:], *end) for end in ends] if mask.size else []:
        parts = mask.reshape(cut(block_of(mask.shape, piece), piece))
        first = parts[(slice(None), slice(1)) * mask.ndim]
        if (parts == first).all():
            return piece
    return entry


def _pieces(mask: np.ndarray, piece: Sequence[int]) -> np.ndarray:
    """Which pieces are kept."""
    return mask[tuple(slice(None, None, size) for size in piece)]


def _finest_grid(shape: Sequence[int], piece: Sequence[int]) -> tuple[int, ...]:
    tiles = [(1,)] * (len(shape) - 2) + [*_TILES]
    found = zip(shape, tiles[len(tiles) - len(shape) :], piece, strict=True)
    grid = [_cuts(n, tile if size == 1 else (size,)) for n, tile, size in found]
    most = max(1, min(_MOST_BLOCKS, math.prod(shape) // _LEAST_BLOCK))
    while math.prod(grid) > most:
        grid[grid.index(max(grid))] //= 2
    return tuple(grid)


def _cuts(size: int, tiles: Sequence[int]) -> int:
    """Into how many parts an axis is cut: of whole tiles, or of less if few."""
    cuts = 1
    for tile in tiles:
        if size and size % tile == 0:
            cuts = math.gcd(size // tile, _MOST_CUTS)
        if cuts >= _MANY_CUTS:
            break
    return cuts


def _halvings(count: int) -> list[int]:
    return [count >> i for i in range(count.bit_length())]


def _summed(counts: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """Counts of a coarser grid."""
    for axis, size in enumerate(grid):
        shape = (*counts.shape[:axis], size, -1, *counts.shape[axis + 1 :])
        counts = counts.reshape(shape).sum(axis=axis + 1)
    return counts


def _blocks(mask: np.ndarray, grid: Sequence[int]) -> np.ndarray:
    """The blocks of a mask, row by row."""
    block = [size // count for size, count in zip(mask.shape, grid, strict=True)]
    cut = mask.reshape([n for pair in zip(grid, block, strict=True) for n in pair])
    order = (*range(0, cut.ndim, 2), *range(1, cut.ndim, 2))
    return cut.transpose(order).reshape(math.prod(grid), math.prod(block))
