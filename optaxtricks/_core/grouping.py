"""Many leaves in one GPU kernel, though each is summed or scaled by itself.

XLA for GPUs merges loops over leaves of one shape where they read a common array. Where
they do not, it launches one kernel each: for a model of a hundred leaves, most of them
small, hundreds of launches that take longer than the work. A scalar does not count as
common, nor what XLA knows to be constant. So leaves read a vector that is held back
from constant folding. Nothing of one leaf enters another, which `per_layer` relies on.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def common(*numbers: Any) -> jax.Array:
    """Numbers that all leaves need, in one vector."""
    return jax.lax.optimization_barrier(jnp.stack(numbers))


# Jitted, so that leaves of one shape share one trace.
@functools.partial(jax.jit, static_argnames="axes")
def total(x: jax.Array, axes: Sequence[int] | None = None) -> jax.Array:
    """The sum along axes, by default all; on GPUs from a zero that others read too."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    if not axes:
        return x

    def together(x: jax.Array) -> jax.Array:
        zero, _ = common(jnp.zeros((), x.dtype), jnp.zeros((), x.dtype))
        return jax.lax.reduce(x, zero, jax.lax.add, axes)

    apart = lambda x: jnp.sum(x, axis=axes)
    return jax.lax.platform_dependent(x, cuda=together, default=apart)


@jax.jit
def acting(number: jax.Array) -> jax.Array:
    """A number that is to change its leaf: on GPUs times a one that others read too.

    From another vector than above, as XLA would compute sums of some leaves and changes
    of others in one kernel, which is slow at both.
    """
    together = lambda x: x * common(*[jnp.ones((), x.dtype)] * 3)[0]
    return jax.lax.platform_dependent(number, cuda=together, default=lambda x: x)
