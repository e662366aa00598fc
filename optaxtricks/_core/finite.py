"""The test for NaN and infinity that kernel and recipe of Tiger share."""

import jax
import jax.numpy as jnp


def all_finite(x: jax.Array) -> jax.Array:
    """Whether every entry is a finite number; of no entries, true.

    Zero times NaN or infinity is NaN, and a sum is one fused pass: on CPU, where
    XLA writes out the array of bools that `isfinite(x).all()` would reduce, it takes
    a third of the time.
    """
    return (x * jnp.zeros((), x.dtype)).sum() == 0
