"""Numbers as arguments: what is one, what is known of it, and what may have become
of it under `optax.inject_hyperparams`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_real_scalar(value: Any) -> bool:
    """Whether a value is one integer or real number, known or traced."""
    if isinstance(value, bool | int | float):
        return not isinstance(value, bool)
    if not isinstance(value, np.generic | np.ndarray | jax.Array) or value.ndim:
        return False
    kinds = jnp.floating, jnp.integer
    return any(jnp.issubdtype(value.dtype, kind) for kind in kinds)


def is_floating(value: Any) -> bool:
    """Whether a real scalar is no integer."""
    return isinstance(value, float) or (
        not isinstance(value, int) and jnp.issubdtype(value.dtype, jnp.floating)
    )


def known(name: str, value: Any, *, schedule: bool) -> float | None:
    """The value as a float; None if it is traced or, where allowed, a schedule."""
    if schedule and callable(value):
        return None
    if not is_real_scalar(value):
        wanted = "a number or a schedule" if schedule else "a number"
        raise TypeError(f"{name} must be {wanted}, got {value!r}.")
    if isinstance(value, jax.core.Tracer):
        return None
    try:
        return float(value)
    except OverflowError:  # an int of Python may be larger than any float
        return np.inf if value > 0 else -np.inf


def static_hint(name: str, value: Any) -> str:
    """For an error: how an argument that was given plain may have become an array."""
    if not isinstance(value, jax.Array):
        return ""
    return f'; under optax.inject_hyperparams list it: static_args=("{name}",)'


def share(
    named: Mapping[str, Any],
    within: Callable[[float], bool],
    text: str,
    *,
    schedule: bool = False,
) -> None:
    """As `bounded`, for what is near 1 or 0 so often that rounding makes it so."""
    for name, value in named.items():
        if known(name, value, schedule=schedule) is not None:
            _rounded_to_an_end(name, value)
    bounded(named, within, text, schedule=schedule)


def bounded(
    named: Mapping[str, Any],
    within: Callable[[float], bool],
    text: str,
    *,
    schedule: bool = False,
) -> None:
    """Rejects a known number that is not within bounds; `text` says what it must."""
    for name, value in named.items():
        number = known(name, value, schedule=schedule)
        if number is not None and not within(number):
            raise ValueError(f"{name} must {text}, got {value!r}.")


def _rounded_to_an_end(name: str, value: Any) -> None:
    """Rejects a known number of a narrow dtype that is exactly 0 or 1.

    It may have been 0.999: injected numbers take the dtype of the parameters.
    """
    if isinstance(value, int | float) or isinstance(value, jax.core.Tracer):
        return
    narrow = value.dtype.itemsize < 4 and jnp.issubdtype(value.dtype, jnp.floating)
    if narrow and float(value) in (0.0, 1.0):
        raise ValueError(
            f"{name} is {float(value)} as a {value.dtype}, to which it may have been "
            "rounded: optax.inject_hyperparams gives numbers the dtype of the "
            "parameters; pass it hyperparam_dtype=jnp.float32."
        )
