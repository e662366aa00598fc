"""A leaf times a number, or each layer times its own; narrow leaves lose nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def scaled(update: Any, factor: Any, axis: int | None = None) -> jax.Array:
    """The product, taken in float32 or wider, in the dtype of the update.

    A vector of factors goes along `axis`, where one is given.
    """
    update = jnp.asarray(update)
    wide = np.promote_types(update.dtype, np.float32)
    factor = jnp.asarray(factor, wide)
    if axis is not None and factor.ndim:
        factor = jnp.expand_dims(factor, [i for i in range(update.ndim) if i != axis])
    return (update.astype(wide) * factor).astype(update.dtype)
