"""The test for NaN and infinity that Tiger's momentum and its shrinking share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .grouping import acting, total


def all_finite(x: Any) -> jax.Array:
    """Whether every entry is a finite number; of no entries, true.

    A finite number less itself is 0, NaN and infinity less themselves are NaN, and XLA
    sums in one pass. Of `isfinite(x).all()` it writes out the bools first, on CPU.
    """
    x = jnp.asarray(x)
    # In one width, so that leaves of all dtypes share one kernel and one message.
    wide = np.promote_types(x.dtype, np.float32)
    return acting(total((x - x).astype(wide))) == 0
