"""The test for NaN and infinity that kernel and recipe of Tiger share."""

import jax


def all_finite(x: jax.Array) -> jax.Array:
    """Whether every entry is a finite number; of no entries, true.

    A finite number less itself is 0, NaN and infinity less themselves are NaN, and XLA
    sums in one pass. Of `isfinite(x).all()` it writes out the bools first, on CPU.
    """
    return (x - x).sum() == 0
