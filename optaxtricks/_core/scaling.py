"""A leaf times a number, without loss where the leaf is narrow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def scaled(update: Any, factor: Any) -> jax.Array:
    """The product, taken in float32 or wider, in the dtype of the update."""
    update = jnp.asarray(update)
    wide = np.promote_types(update.dtype, np.float32)
    return (update.astype(wide) * jnp.asarray(factor, wide)).astype(update.dtype)
