"""Shardings that belong to the type of an array."""

from typing import Any

import jax


def typed_sharding(x: Any) -> Any:
    """The sharding of `x` over a mesh of Explicit axes; None if it names no axis."""
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty or not any(sharding.spec):
        return None
    return sharding
