"""The test for NaN and infinity that kernel and recipe of Tiger share."""

import jax
import jax.numpy as jnp


def all_finite(x: jax.Array) -> jax.Array:
    """Whether every entry is a finite number; of no entries, true."""
    return jnp.isfinite(x).all()
