"""Gradients of single examples, and of whole batches, summed a few at a time.

An objective maps (chosen leaves, example) to (scalar, auxiliary scalar). Sums are
lists of float32 leaves with the sum of the auxiliary scalars at the end.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .shardings import whole_rows

Leaves = list[jax.Array]
Objective = Callable[[Leaves, Any], tuple[jax.Array, jax.Array]]
Part = Callable[[Any], Leaves]

# Torch adds this to a norm before it divides by it to clip.
_CLIP_FLOOR = 1e-6

# Examples whose powers are added to the sums in one pass over memory, though they
# are taken one at a time; each holds a gradient of its own meanwhile.
_AT_ONCE = 4


def halves(leaves: list[Any], chosen: list[bool]) -> tuple[list[Any], list[Any]]:
    """The chosen leaves, and the others."""
    pairs = list(zip(leaves, chosen, strict=True))
    return [x for x, c in pairs if c], [x for x, c in pairs if not c]


def filled(layout: Any, chosen: list[bool], selected: Any, rest: Any) -> Any:
    """The tree of this layout with both halves back in their places."""
    sides = iter(rest), iter(selected)
    return jax.tree.unflatten(layout, [next(sides[c]) for c in chosen])


def plus(left: Leaves, right: Leaves) -> Leaves:
    """Leaf by leaf, the sum of two lists."""
    return [x + y for x, y in zip(left, right, strict=True)]


def powers(grads: Leaves, power: int) -> Leaves:
    """Absolute values (power 1) or squares (power 2), in float32."""
    measure = jnp.square if power == 2 else jnp.abs
    return [measure(x.astype(jnp.float32)) for x in grads]


def clipped(grad: jax.Array, limit: float | None, layer: int | None) -> jax.Array:
    """A leaf, or each layer along an axis, scaled down to a norm as torch does it."""
    if limit is None:
        return grad
    axes = tuple(i for i in range(grad.ndim) if i != layer)
    norm = jnp.sqrt(jnp.square(grad).sum(axis=axes, keepdims=True))
    return grad * jnp.minimum(1, limit / (norm + _CLIP_FLOOR))


def each(rule: Part) -> Part:
    """Sums a rule for one example over a chunk of examples."""

    def part(chunk: Any) -> Leaves:
        if leading_size(chunk) == 1:
            return rule(jax.tree.map(lambda x: x[0], chunk))
        return [x.sum(axis=0) for x in jax.vmap(rule)(chunk)]

    return part


def lanes_of(batch: Any, width: int) -> NamedSharding | None:
    """How `width` sums lie over the devices that share the examples of a batch.

    None where one sum will do: nothing is known of a traced batch, and with Explicit
    axes every device has the whole batch.
    """
    first = jax.tree.leaves(batch)[0]
    if isinstance(first, jax.core.Tracer) or not isinstance(first, jax.Array):
        return None
    sharding = first.sharding
    if not isinstance(sharding, NamedSharding) or not sharding.spec[:1]:
        return None
    names = sharding.spec[0] or ()
    names = names if isinstance(names, tuple) else (names,)
    mesh = sharding.mesh
    devices = math.prod(mesh.shape[name] for name in names)
    auto = all(kind is AxisType.Auto for kind in mesh.axis_types)
    if devices == 1 or width % devices or not auto:
        return None
    return NamedSharding(mesh, PartitionSpec(names))


def fold_lanes(
    rule: Part, sums: Leaves, examples: Any, width: int, lanes: NamedSharding
) -> Leaves:
    """As `fold` of `each(rule)`, with one all-reduce in place of one a chunk.

    Every device keeps sums of its own, which are added up once, at the end.
    """
    size = leading_size(examples)
    head = size // width * width

    def placed(x: jax.Array) -> jax.Array:
        free = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
        spec = PartitionSpec(*lanes.spec, *free)
        return jax.lax.with_sharding_constraint(x, NamedSharding(lanes.mesh, spec))

    part = lambda chunk: [placed(x) for x in jax.vmap(rule)(chunk)]
    zeros = [placed(jnp.zeros((width, *x.shape), x.dtype)) for x in sums]
    own = fold(part, zeros, jax.tree.map(lambda x: x[:head], examples), width)
    sums = plus(sums, [x.sum(axis=0) for x in own])
    if head < size:
        sums = plus(sums, each(rule)(jax.tree.map(lambda x: x[head:], examples)))
    return sums


def gradient_sum(objective: Objective, chosen: Leaves) -> Part:
    """Sums gradients over a chunk of examples in one backward pass."""

    def part(chunk: Any) -> Leaves:
        def mean(chosen: Leaves) -> tuple[jax.Array, jax.Array]:
            values, rest = jax.vmap(objective, in_axes=(None, 0))(chosen, chunk)
            # The mean, as the sum may overflow a narrow dtype.
            return values.mean(), rest.sum()

        grads, rest = jax.grad(mean, has_aux=True)(chosen)
        size = leading_size(chunk)
        return [*(x.astype(jnp.float32) * size for x in grads), rest]

    return part


def leading_size(tree: Any) -> int:
    """The number of examples."""
    return jax.tree.leaves(tree)[0].shape[0]


def fold(part: Part, sums: Leaves, examples: Any, width: int) -> Leaves:
    """Adds `part` of every `width` examples to the sums, chunk after chunk."""
    examples = jax.tree.map(_gathered, examples)
    size = leading_size(examples)
    chunks = size // width

    def strided(x: jax.Array) -> jax.Array:
        # Each chunk takes every `chunks`-th example: of a batch that is sharded over
        # `width` devices, every device then has one example in every chunk.
        head = x[: chunks * width]
        return head.reshape(width, chunks, *x.shape[1:]).swapaxes(0, 1)

    step = lambda sums, chunk: (plus(sums, part(chunk)), None)
    chunked = jax.tree.map(strided, examples)
    sums, _ = jax.lax.scan(
        step, sums, chunked, unroll=max(1, min(_AT_ONCE // width, chunks))
    )
    if chunks * width < size:
        tail = jax.tree.map(lambda x: x[chunks * width :], examples)
        sums = plus(sums, part(tail))
    return sums


def _gathered(x: jax.Array) -> jax.Array:
    """Frees the example axis of an Explicit mesh axis, which no scan may split."""
    sharding = whole_rows(x)
    return x if sharding is None else jax.sharding.reshard(x, sharding)
