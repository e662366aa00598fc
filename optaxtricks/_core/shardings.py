"""Shardings that belong to the type of an array."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def typed_sharding(x: Any) -> Any:
    """The sharding of `x` over a mesh of Explicit axes; None if it names no axis."""
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty or not any(sharding.spec):
        return None
    return sharding


def has_explicit_mesh(x: Any) -> bool:
    """Whether the type of `x` has a mesh with Explicit axes, named or not."""
    mesh = jax.typeof(x).sharding.mesh
    return jax.sharding.AxisType.Explicit in mesh.axis_types


def on_device(x: Any) -> Any:
    """The array in its devices' own memory, where its type says it is in a host's."""
    space = jax.memory.Space
    if jax.typeof(x).memory_space != space.Host:
        return x
    traced = isinstance(x, jax.core.Tracer)
    there = space.Device if traced else x.sharding.with_memory_kind(None)
    return jax.device_put(x, there)


def replicated(x: Any) -> Any:
    """The array whole on every device, where its type says how it is sharded."""
    sharding = typed_sharding(x)
    if sharding is None:
        return x
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.sharding.reshard(x, whole)


def reshard_like(x: Any, like: Any) -> Any:
    """The array placed as another, where that one's type says how."""
    sharding = typed_sharding(like)
    return x if sharding is None else jax.sharding.reshard(x, sharding)


def whole_rows(x: Any) -> Any:
    """The sharding of some rows of `x`, each on all devices that have parts of rows."""
    sharding = typed_sharding(x)
    if sharding is None:
        return None
    spec = jax.sharding.PartitionSpec(None, *sharding.spec[1:])
    return jax.sharding.NamedSharding(sharding.mesh, spec)


def along(x: Any, axis: int, words: Any) -> Any:
    """Words whose last axis is sharded as one of `x`, over which both are mapped."""
    sharding = typed_sharding(x)
    if sharding is None:
        return words
    spec = jax.sharding.PartitionSpec(*[None] * (words.ndim - 1), sharding.spec[axis])
    there = jax.sharding.NamedSharding(sharding.mesh, spec)
    return jax.sharding.reshard(words, there)


def taken(x: Any, indices: Any, axis: int) -> Any:
    """Entries of `x`, of NumPy or JAX, along an axis that ends up on all devices."""
    if isinstance(x, np.ndarray):
        return x.take(indices, axis=axis)
    sharding = typed_sharding(x)
    if sharding is None:
        return jnp.take(x, indices, axis=axis, mode="clip")
    names = [None if i == axis else name for i, name in enumerate(sharding.spec)]
    out = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*names))
    return x.at[(slice(None),) * axis + (indices,)].get(out_sharding=out, mode="clip")


def taken_by_layer(x: Any, indices: np.ndarray, axis: int, layer: int) -> Any:
    """As `taken` in each layer of a stack: by a row of indices, on a layer's axis."""
    if isinstance(x, np.ndarray):
        axis += axis >= layer
        others = tuple(i for i in range(x.ndim) if i not in (axis, layer))
        table = np.expand_dims(indices if layer < axis else indices.T, others)
        return np.take_along_axis(x, table, axis)
    return _mapped_over_layers(x, indices.T, axis, layer)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _mapped_over_layers(x: jax.Array, rows: jax.Array, axis: int, layer: int) -> Any:
    one = lambda part, row: taken(part, row, axis)
    own = along(x, layer, rows)
    return jax.vmap(one, in_axes=(layer, -1), out_axes=layer)(x, own)
