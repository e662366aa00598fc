"""Noise that multiplies an update: what is dropped, and how the rest is scaled."""

import functools

import jax
import jax.numpy as jnp

from .counter_hash import Granularity, entry_words
from .normals import normals
from .scaling import scaled


# Both leaf rules are jitted and take everything as operands, constants included:
# leaves of one shape then share one trace and one compiled kernel.
@functools.partial(jax.jit, static_argnums=5)
def _bernoulli(
    update: jax.Array,
    words: jax.Array,
    now: jax.Array,
    last: jax.Array,
    scale: jax.Array,
    granularity: Granularity,
) -> jax.Array:
    keep = entry_words(update, words, granularity, now) <= last
    return jnp.where(keep, scaled(update, scale), jnp.zeros((), update.dtype))


@functools.partial(jax.jit, static_argnums=5)
def _gaussian(
    update: jax.Array,
    words: jax.Array,
    now: jax.Array,
    last: jax.Array,
    scale: jax.Array,
    granularity: Granularity,
) -> jax.Array:
    del last
    bits = entry_words(update, words, granularity, now)
    return scaled(update, 1 + normals(bits) * scale.astype(jnp.float32))


# For each distribution the leaf rule, and the one number it needs of the rate. Not a
# division by the rate: XLA makes it a product, where the rate is a constant in another
# way than where it is an operand, and jit would differ from eager.
NOISE = {
    "bernoulli": (_bernoulli, lambda rate: jnp.where(rate > 0, 1 / rate, 0)),
    "gaussian": (_gaussian, lambda rate: jnp.sqrt((1 - rate) / rate)),
}
