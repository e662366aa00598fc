"""Positions of entries in a leaf, as arrays that SPMD partitioning keeps local."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .shardings import typed_sharding


def index_along(like: Any, axes: range, own: Any = None) -> jax.Array:
    """Row-major position along `axes` as uint32, shaped and sharded as `like`.

    One iota an axis, and no reshape: each device then counts its own part.

    With a word `own` all axes but the last count from it, and the last from as much
    below 0: the same positions, from vectors that leaves with another word do not
    share, as XLA computes those of one shape once for all. Inside a loop it cancels.
    """
    # On a mesh of Explicit axes every operand must name its sharding.
    sharding = None if isinstance(like, jax.ShapeDtypeStruct) else typed_sharding(like)
    total = jnp.zeros((), jnp.uint32)
    others = len(axes) - 1
    for axis in axes:
        stride = math.prod(like.shape[axis + 1 : axes.stop])
        iota = jax.lax.broadcasted_iota(
            jnp.uint32, like.shape, axis, out_sharding=sharding
        )
        part = iota if stride == 1 else iota * _as_word(stride)
        if own is not None and others > 0:
            is_last = axis + 1 == axes.stop
            part = part - own * np.uint32(others) if is_last else part + own
        total = total + part
    return total


def _as_word(stride: Any) -> Any:
    """A stride as uint32; one of symbolic sizes is known when the program runs."""
    if isinstance(stride, int):
        return np.uint32(stride)
    return jnp.asarray(stride).astype(jnp.uint32)
