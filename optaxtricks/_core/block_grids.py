"""The grid of equal blocks into which a leaf is cut, and where its lists belong."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .shardings import typed_sharding


def lists_sharding(leaf: Any, shape: Sequence[int]) -> NamedSharding | None:
    """Where lists of this shape belong, beside a leaf whose place is known.

    On a mesh of Explicit axes a type says it, else an array that is not traced.
    """
    traced = isinstance(leaf, jax.core.Tracer)
    there = typed_sharding(leaf) if traced else leaf.sharding
    if not isinstance(there, NamedSharding) or not any(there.spec):
        return None
    grid, sizes = grid_of(jnp.shape(leaf), shape), dict(there.mesh.shape)
    spec = [*there.spec, *[None] * (len(grid) - len(there.spec))]
    names = [(name,) if isinstance(name, str) else name or () for name in spec]
    parts = [math.prod(sizes[axis] for axis in axes) for axes in names]
    fits = [
        name if blocks % count == 0 else None
        for name, blocks, count in zip(spec, grid, parts, strict=True)
    ]
    return NamedSharding(there.mesh, PartitionSpec(*fits if len(shape) > 1 else ()))


def placed(function: Any, sharding: Any) -> Any:
    """The function, with its result in a place that belongs to its type, if any."""
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return function
    return jax.sharding.auto_axes(function, out_sharding=sharding)


def grid_of(shape: Sequence[int], lists: Sequence[int]) -> tuple[int, ...]:
    """Blocks along each axis: one list alone is written without their axes."""
    return tuple(lists[:-1]) if len(lists) > 1 else (1,) * len(shape)


def block_of(shape: Sequence[int], grid: Sequence[int]) -> tuple[int, ...]:
    return tuple(size // count for size, count in zip(shape, grid, strict=True))


def cut(*shapes: Sequence[int]) -> list[int]:
    """The shape of a leaf with several axes for each: block and entry, or so."""
    return [size for sizes in zip(*shapes, strict=True) for size in sizes]


def coordinates(at: jax.Array, shape: Sequence[int]) -> list[jax.Array]:
    """Coordinates of row-major positions; one past the last is past the first axis."""
    found = []
    for size in reversed(shape[1:]):
        found.append(jax.lax.rem(at, jnp.full_like(at, size)))
        at = jax.lax.div(at, jnp.full_like(at, size))
    return [at, *reversed(found)]
