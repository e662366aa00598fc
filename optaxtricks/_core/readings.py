"""The names under which monitors of one optimizer report, each of them once."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Name of the monitor -> label -> reading -> scalar, or a vector of one for each layer.
Readings = Mapping[str, Mapping[str, Mapping[str, Any]]]


def by_name(monitors: Iterable[Readings]) -> dict[str, jax.Array]:
    """The scalars of all monitors, or an error where two have one name."""
    found: dict[str, jax.Array] = {}
    for held in monitors:
        for name, groups in held.items():
            for label, readings in groups.items():
                for full, value in _by_layer(f"{name}/{label}", readings):
                    if full in found:
                        raise ValueError(
                            f"two monitors report {full!r}; give each its own name, "
                            'as in monitor_groups(labels, name="grads").'
                        )
                    found[full] = value
    return found


def array(value: Any) -> Any:
    """The array itself, also where nnx.Optimizer put it into a Variable."""
    (inner,) = jax.tree.leaves(value)
    return inner


def _by_layer(prefix: str, readings: Mapping[str, Any]) -> list[tuple[str, jax.Array]]:
    """The readings of a label with their names; a vector has one for each layer."""
    found: list[tuple[str, jax.Array]] = []
    for reading, value in readings.items():
        numbers = array(value)
        if jnp.ndim(numbers):
            each = enumerate(numbers)
            found += [(f"{prefix}/{i}/{reading}", layer) for i, layer in each]
        else:
            found.append((f"{prefix}/{reading}", numbers))
    return found
