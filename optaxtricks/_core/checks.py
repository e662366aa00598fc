"""Every argument check. Concrete values are examined; traced ones pass unexamined."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .paths import leaves_with_paths, listing


def fraction(**named: Any) -> None:
    """Rejects a number outside (0, 1]; a schedule (callable) or tracer passes."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=True)
        if number is not None and not 0.0 < number <= 1.0:
            raise ValueError(f"{name} must lie in (0, 1], got {value!r}.")


def fixed_fraction(**named: Any) -> None:
    """Rejects all but a number in (0, 1] that is known at once."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=False)
        if number is None:
            raise TypeError(f"{name} must be a number, not a traced value.")
        if not 0.0 < number <= 1.0:
            raise ValueError(f"{name} must lie in (0, 1], got {value!r}.")


def open_fraction(**named: Any) -> None:
    """Rejects a number outside (0, 1), both ends excluded; a tracer passes."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=False)
        if number is not None and not 0.0 < number < 1.0:
            raise ValueError(f"{name} must lie in (0, 1), got {value!r}.")


def unit_interval(**named: Any) -> None:
    """Rejects a number outside [0, 1]; a schedule (callable) or tracer passes."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=True)
        if number is not None and not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def closed_fraction(**named: Any) -> None:
    """Rejects all but a number in [0, 1]; a tracer passes."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=False)
        if number is not None and not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value!r}.")


def learning_rate(**named: Any) -> None:
    """Rejects NaN and infinity; a schedule (callable) or tracer passes."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=True)
        if number is not None and not np.isfinite(number):
            raise ValueError(f"{name} must be finite, got {value!r}.")


def non_negative(**named: Any) -> None:
    """Rejects a number below zero (NaN and infinity included)."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=False)
        if number is not None and not 0.0 <= number < np.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {value!r}.")


def float_dtype(**named: Any) -> Any:
    """The dtype of an argument that names a floating one; None stays None."""
    ((name, value),) = named.items()
    if value is None:
        return None
    try:
        dtype = jax.dtypes.canonicalize_dtype(value)
    except TypeError:
        raise TypeError(f"{name} must be a dtype or None, got {value!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating dtype, got {value!r}.")
    return dtype


def positive(**named: Any) -> None:
    """Rejects a number that is not above zero (NaN and infinity included)."""
    for name, value in named.items():
        number = _concrete(name, value, schedule=False)
        if number is not None and not 0.0 < number < np.inf:
            raise ValueError(f"{name} must be positive and finite, got {value!r}.")


def positive_int(**named: Any) -> None:
    """Rejects all but whole numbers above zero."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be an int, got {value!r}.")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}.")


def chosen(options: Collection[Any], **named: Any) -> None:
    """Rejects a value that is not one of `options`."""
    for name, value in named.items():
        if value not in tuple(options):
            raise ValueError(f"{name} must be one of {list(options)}, got {value!r}.")


def flag(**named: Any) -> None:
    """Rejects all but `True` and `False`."""
    for name, value in named.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}.")


def optimizer(**named: Any) -> None:
    """Rejects all but Optax transformations."""
    for name, value in named.items():
        if not isinstance(value, optax.GradientTransformation):
            raise TypeError(
                f"{name} must be an optax.GradientTransformation, got {value!r}."
            )


def arrays(tree: Any, *, by: str) -> None:
    """Rejects leaves that are neither arrays nor numbers."""
    for path, leaf in leaves_with_paths(tree):
        _dtype(path, leaf, by, "a closure")


def inexact_leaves(
    tree: Any,
    *,
    by: str,
    allow_complex: bool = True,
    remedy: str = "optax.masked or optax.partition",
) -> None:
    """Rejects integer and Boolean leaves (and complex ones where undefined)."""
    for path, leaf in leaves_with_paths(tree):
        dtype = _dtype(path, leaf, by, remedy)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"{by} needs floating-point leaves, but the leaf at {path!r} has "
                f"dtype {dtype}; leave it out with {remedy}."
            )
        if not allow_complex and jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(
                f"{by} is not defined for complex numbers, but the leaf at {path!r} "
                f"has dtype {dtype}."
            )


def array_leaves(
    tree: Any, *, by: str, remedy: str = "optax.masked or optax.partition"
) -> None:
    """Rejects leaves that are no arrays."""
    for path, leaf in leaves_with_paths(tree):
        _dtype(path, leaf, by, remedy)


def finite_leaves(tree: Any, *, what: str) -> None:
    """Rejects NaN and infinity, with one wait for the device; traced leaves pass."""
    named = leaves_with_paths(tree)
    named = [(p, x) for p, x in named if not isinstance(x, jax.core.Tracer)]
    finite = jax.device_get([jnp.isfinite(x).all() for _, x in named])
    bad = [path for (path, _), good in zip(named, finite, strict=True) if not good]
    if bad:
        raise ValueError(f"{what} is not finite at {listing(bad)}.")


def same_count(leaves: Sequence[Any], known: Sequence[Any], *, by: str) -> None:
    """Rejects updates with another number of leaves than `init` saw."""
    if len(leaves) != len(known):
        raise ValueError(
            f"{by} was initialised for {len(known)} leaves but got updates with "
            f"{len(leaves)}."
        )


def scalar(**named: Any) -> None:
    """Rejects what a schedule must not return: all but one number."""
    for name, value in named.items():
        if value is None or np.ndim(value) != 0:
            raise ValueError(f"{name} must give a scalar at each step, got {value!r}.")


def step_count(**named: Any) -> None:
    """Rejects all but whole numbers in [0, 2**31); a traced one passes."""
    for name, value in named.items():
        if isinstance(value, jax.core.Tracer):
            continue
        if isinstance(value, bool) or not _whole_scalar(value):
            raise TypeError(f"{name} must be a whole number, got {value!r}.")
        if not 0 <= int(value) < 2**31:
            raise ValueError(f"{name} must lie in [0, 2**31), got {value!r}.")


def _whole_scalar(value: Any) -> bool:
    """Whether NumPy sees one integer; asked of the array, as a string names a dtype."""
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "iu"


def _dtype(path: str, leaf: Any, by: str, remedy: str) -> Any:
    try:
        return jnp.result_type(leaf)
    except TypeError:
        raise TypeError(
            f"{by} needs arrays, but the leaf at {path!r} is a {type(leaf).__name__}; "
            f"leave it out with {remedy}."
        ) from None


def _concrete(name: str, value: Any, *, schedule: bool) -> float | None:
    """The value as a float; None if it is traced or, where allowed, a schedule."""
    if isinstance(value, jax.core.Tracer) or (schedule and callable(value)):
        return None
    wanted = "a number or a schedule" if schedule else "a number"
    if isinstance(value, bool | str | bytes) or np.ndim(value) != 0:
        raise TypeError(f"{name} must be {wanted}, got {value!r}.")
    try:
        return float(value)
    except TypeError:
        raise TypeError(f"{name} must be {wanted}, got {value!r}.") from None
