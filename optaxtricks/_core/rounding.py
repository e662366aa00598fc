"""Stochastic rounding of a sum to a narrow dtype, from one random word an entry."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .counter_hash import WORD

_EXPONENT = np.uint32(0x7F800000)
_SUM = np.uint32(254 << 23)  # the exponents of x and 1 / x add up to this
# Most devices take what is below 2**-126 for zero: of this spacing they see all bits.
_LEAST = np.float32(2**-102)


def is_narrow(dtype: Any) -> bool:
    """Whether a dtype is bfloat16 or float16, whose numbers float32 has all."""
    return dtype in (jnp.bfloat16, jnp.float16)


@jax.custom_jvp
def rounded_step(param: jax.Array, update: jax.Array, word: jax.Array) -> jax.Array:
    """The float32 step from a narrow parameter to one of the two numbers of its dtype
    beside `param + update`, to the nearer with the greater probability, so that the
    mean over uniform words is that sum.

    `param + step` in float32 is that number exactly, or rounds to it.
    """
    info = jnp.finfo(param.dtype)
    p, u = param.astype(jnp.float32), update.astype(jnp.float32)
    # The sum, and exactly what its rounding lost (Knuth): a step far below the spacing
    # of float32 keeps its probability.
    total = p + u
    moved = total - p
    lost = (p - (total - moved)) + (u - moved)
    # The spacing of numbers at the sum; wider where the parameter is so much larger
    # that float32 has no step to each of them.
    least = max(np.float32(info.smallest_subnormal), _LEAST)
    spacing = jnp.maximum(
        _power_of_two(total) * np.float32(2.0**-info.nmant),
        jnp.maximum(_power_of_two(p) * np.float32(2**-23), least),
    )
    # Not divisions, across which XLA's CPU backend does not fuse.
    number = _one_over(spacing)
    nearest = jnp.round(total * number) * spacing
    # What part of a spacing is left from there, in [-1/2, 1/2].
    left = ((total - nearest) + lost) * number
    threshold = (jnp.abs(left) * np.float32(WORD)).astype(jnp.uint32)
    away = jnp.where(word < threshold, jnp.copysign(spacing, left), np.float32(0))
    # At the end of the range nearest rounding decides, infinity and NaN included. And
    # no update is no step, for a subnormal number too.
    within = (jnp.abs(nearest) + spacing <= np.float32(info.max)) & (u != 0)
    return jnp.where(within, (nearest + away) - p, u)


@rounded_step.defjvp
def _as_if_exact(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return rounded_step(*primals), tangents[1].astype(jnp.float32)


def _power_of_two(x: jax.Array) -> jax.Array:
    """The largest power of two that is not above |x|; 0 where that is subnormal."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & _EXPONENT, jnp.float32)


def _one_over(power: jax.Array) -> jax.Array:
    """The inverse of a power of two."""
    bits = jax.lax.bitcast_convert_type(power, jnp.uint32)
    return jax.lax.bitcast_convert_type(_SUM - bits, jnp.float32)
