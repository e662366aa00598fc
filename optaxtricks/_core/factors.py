"""Factors of leaves: a number, or for a stack a vector of one number a layer.

Vectors that are known are NumPy's: checked and compared without a device.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .paths import OneLeaf
from .scaling import scaled


def factor(**named: Any) -> Any:
    """A factor as it was given, a known vector as NumPy's; or an error."""
    ((name, value),) = named.items()
    if _is_vector(value):
        return _vector(name, value, f"{name} must be a number, a schedule or a vector")
    if not callable(value):
        checks.non_negative(**{name: value})
    return value


def factor_at(step: Any, **named: Any) -> Any:
    """The factor itself or, where it is a schedule, what it gives at a step."""
    ((name, value),) = named.items()
    if not callable(value):
        return value
    value = value(step)
    text = f"{name} must give a number or a vector at each step"
    if _is_vector(value):
        return _vector(name, value, text)
    try:
        checks.scalar(**{name: value})
    except ValueError:
        raise ValueError(f"{text}, got {value!r}.") from None
    return value


def check_length(
    factor: Any, path: str, leaf: Any, axis: int | None, name: str
) -> None:
    """Rejects a vector that has not one number for each layer of the leaf."""
    if not _is_vector(factor):
        return
    start = f"{name} is a vector of {factor.shape[0]} numbers, but the leaf at {path!r}"
    if axis is None:
        raise ValueError(f"{start} is no stack: `stacked` does not choose it.")
    if leaf.shape[axis] != factor.shape[0]:
        raise ValueError(f"{start} has {leaf.shape[axis]} layers, on axis {axis}.")


def times(update: Any, factor: Any, axis: int | None = None) -> Any:
    """An array or a RowSparse times the factor of its leaf; itself if that is 1."""
    if isinstance(factor, int | float | np.ndarray) and np.all(factor == 1):
        return update
    if isinstance(update, OneLeaf):
        rows: Any = update
        rows = rows.sound()
        return rows.with_values(scaled(rows.values, factor))
    return scaled(update, factor, axis)


def _is_vector(value: Any) -> bool:
    """Whether a value is meant as one number a layer."""
    if isinstance(value, list | tuple):
        return True
    return isinstance(value, np.ndarray | jax.Array) and value.ndim > 0


def _vector(name: str, value: Any, text: str) -> Any:
    """A vector of factors: a traced one as it is, a known one as a copy."""
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(value))
    try:
        array = jnp.asarray(value) if traced else np.asarray(value)
    except (TypeError, ValueError):  # ragged, or no numbers
        array = np.zeros(())
    kinds = jnp.floating, jnp.integer
    if array.ndim != 1 or not any(jnp.issubdtype(array.dtype, k) for k in kinds):
        raise TypeError(f"{text} of numbers, got {value!r}.")
    if traced:
        return array
    known = np.array(array, np.float64)
    if not ((known >= 0) & (known < np.inf)).all():
        raise ValueError(f"{name} must be at least 0 and finite, got {value!r}.")
    return known
