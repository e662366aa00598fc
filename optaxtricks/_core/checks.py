"""Every argument check. Concrete values are examined; traced ones pass unexamined."""

import os
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .choices import is_function
from .numbers import bounded, is_floating, is_real_scalar, known, share, static_hint
from .paths import leaves_with_paths, listing


def fraction(*, schedule: bool = True, **named: Any) -> None:
    """Rejects a number outside (0, 1]; a tracer and, if allowed, a schedule pass."""
    share(named, lambda x: 0.0 < x <= 1.0, "lie in (0, 1]", schedule=schedule)


def fixed_fraction(**named: Any) -> None:
    """Rejects all but a number in (0, 1] that is known at once."""
    for name, value in named.items():
        if known(name, value, schedule=False) is None:
            raise TypeError(f"{name} must be a number, not a traced value.")
    bounded(named, lambda x: 0.0 < x <= 1.0, "lie in (0, 1]")


def open_fraction(**named: Any) -> None:
    """Rejects a number outside (0, 1), both ends excluded; a tracer passes."""
    share(named, lambda x: 0.0 < x < 1.0, "lie in (0, 1)")


def unit_interval(*, schedule: bool = True, **named: Any) -> None:
    """Rejects a number outside [0, 1]; a tracer and, if allowed, a schedule pass."""
    share(named, lambda x: 0.0 <= x <= 1.0, "lie in [0, 1]", schedule=schedule)


def exponent(**named: Any) -> None:
    """As `unit_interval`; its ends are common values of any dtype."""
    bounded(named, lambda x: 0.0 <= x <= 1.0, "lie in [0, 1]", schedule=True)


def non_negative(**named: Any) -> None:
    """Rejects a number below zero (NaN and infinity included)."""
    bounded(named, lambda x: 0.0 <= x < np.inf, "be at least 0 and finite")


def rate(**named: Any) -> None:
    """Rejects a number below zero or not finite; a schedule or tracer passes."""
    finite = "be at least 0 and finite"
    bounded(named, lambda x: 0.0 <= x < np.inf, finite, schedule=True)


def positive(**named: Any) -> None:
    """Rejects a number that is not above zero (NaN and infinity included)."""
    bounded(named, lambda x: 0.0 < x < np.inf, "be positive and finite")


def float_dtype(**named: Any) -> Any:
    """The dtype of an argument that names a floating one; None stays None."""
    ((name, value),) = named.items()
    if value is None:
        return None
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} must be a dtype or None, got {value!r}{static_hint(name, value)}."
        )
    try:
        dtype = jax.dtypes.canonicalize_dtype(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a dtype or None, got {value!r}.") from None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} must be a floating dtype, got {value!r}.")
    return dtype


def positive_int(**named: Any) -> None:
    """Rejects all but whole numbers above zero that int32 can hold."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(
                f"{name} must be an int, got {value!r}{static_hint(name, value)}."
            )
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}.")
        if value >= 2**31:
            raise ValueError(f"{name} must be below 2**31, got {value!r}.")


def chosen(options: Collection[Any], **named: Any) -> None:
    """Rejects a value that is not one of `options`."""
    for name, value in named.items():
        # Not `in` alone: an array has no truth value, and True equals 1.
        known = value is None or isinstance(value, str | int)
        plain = known and not isinstance(value, bool)
        if not plain or value not in options:
            raise ValueError(f"{name} must be one of {list(options)}, got {value!r}.")


def flag(**named: Any) -> None:
    """Rejects all but `True` and `False`."""
    for name, value in named.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True or False, got {value!r}.")


def pair(out: Any) -> tuple[Any, Any]:
    """What a loss with auxiliary output gave."""
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(
            f"with has_aux, loss_fn must give a pair (value, aux), got {type(out)}."
        )
    return out


def array(**named: Any) -> jax.Array:
    """The argument as a JAX array, or an error that names it."""
    ((name, value),) = named.items()
    try:
        if value is not None:
            return jnp.asarray(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{name} must be an array of numbers, got {value!r}.")


def real_array(**named: Any) -> jax.Array:
    """The argument as a JAX array of real floating-point numbers, likewise."""
    ((name, _),) = named.items()
    found = array(**named)
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(
            f"{name} must hold real floating-point numbers, got dtype {found.dtype}."
        )
    return found


def leaf_mask(**named: Any) -> None:
    """Rejects all but None, a function, and a tree of bools: Optax's `mask`."""
    for name, value in named.items():
        if isinstance(value, bool | np.bool_ | jax.Array):
            # What `optax.inject_hyperparams` makes of a function, if not told better.
            raise TypeError(
                f"{name} must be None, a function of the parameters or a tree of "
                f"bools, got {value!r} alone. Under optax.inject_hyperparams, which "
                f'takes a function for a schedule, list it: static_args=("{name}",).'
            )
        leaves = [] if is_function(value) else jax.tree.leaves(value)
        if bad := [x for x in leaves if not isinstance(x, bool | np.bool_)]:
            raise TypeError(
                f"{name} must be None, a function of the parameters or a tree of "
                f"bools, got the leaf {bad[0]!r}."
            )


def function(**named: Any) -> None:
    """Rejects what cannot be called."""
    for name, value in named.items():
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {value!r}.")


def loss_function(loss_fn: Any, *, has_aux: Any) -> None:
    """Rejects what cannot be differentiated, and a flag that is none."""
    function(loss_fn=loss_fn)
    flag(has_aux=has_aux)


def path(**named: Any) -> None:
    """Rejects all but paths of files and folders."""
    for name, value in named.items():
        if not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} must be a path, got {value!r}.")


def optimizer(**named: Any) -> None:
    """Rejects all but Optax transformations."""
    for name, value in named.items():
        if not isinstance(value, optax.GradientTransformation):
            multi = isinstance(value, optax.MultiSteps)
            cure = ": give its gradient_transformation()" if multi else ""
            raise TypeError(
                f"{name} must be an optax.GradientTransformation, got {value!r}{cure}."
            )


def inexact_leaves(
    tree: Any,
    *,
    by: str,
    allow_complex: bool = True,
    remedy: str = "optax.masked or optax.partition",
) -> None:
    """Rejects integer and Boolean leaves (and complex ones where undefined)."""
    wanted = jnp.inexact if allow_complex else jnp.floating
    # NumPy takes None for float64.
    if all(dtype and jnp.issubdtype(dtype, wanted) for dtype in _dtypes(tree)):
        return  # without the cost of paths
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
    """Rejects leaves that are no arrays of numbers."""
    for path, leaf in leaves_with_paths(tree):
        if jnp.issubdtype(_dtype(path, leaf, by, remedy), jax.dtypes.extended):
            raise TypeError(
                f"{by} needs numbers, but the leaf at {path!r} holds keys; leave it "
                f"out with {remedy}."
            )


def finite_leaves(tree: Any, *, what: str) -> None:
    """Rejects NaN and infinity, with one wait for the device; traced leaves pass."""
    named = leaves_with_paths(tree)
    named = [(p, x) for p, x in named if not isinstance(x, jax.core.Tracer)]
    finite = jax.device_get([jnp.isfinite(x).all() for _, x in named])
    bad = [path for (path, _), good in zip(named, finite, strict=True) if not good]
    if bad:
        raise ValueError(f"{what} is not finite at {listing(bad)}.")


LOST_TYPES = (
    "A checkpoint that is read without a target has lost such types: restore it into "
    "the abstract state jax.eval_shape(tx.init, params)."
)


def strange_state(kind: str, state: Any, *, by: str) -> TypeError:
    """What to raise of a state that the init of `by` has not made."""
    return TypeError(
        f"{by} needs a state{kind}, as its init makes it, got {type(state).__name__}; "
        f"update takes (updates, state, params). {LOST_TYPES}"
    )


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
        if not is_real_scalar(value):
            raise ValueError(f"{name} must give a scalar at each step, got {value!r}.")


def step_count(**named: Any) -> None:
    """Rejects all but whole numbers in [0, 2**31); a traced one passes."""
    for name, value in named.items():
        if not is_real_scalar(value) or is_floating(value):
            raise TypeError(f"{name} must be a whole number, got {value!r}.")
        if isinstance(value, jax.core.Tracer):
            continue
        if not 0 <= int(value) < 2**31:
            raise ValueError(f"{name} must lie in [0, 2**31), got {value!r}.")


def _dtypes(tree: Any) -> set[Any]:
    """The dtypes of the leaves; None for what is no array."""
    leaves = jax.tree.leaves(tree)
    return {x.dtype if isinstance(x, jax.Array | np.ndarray) else None for x in leaves}


def _dtype(path: str, leaf: Any, by: str, remedy: str) -> Any:
    # A string or a type may name a dtype, and is no array for that.
    typed = hasattr(leaf, "dtype") and not isinstance(leaf, type)
    try:
        if typed or isinstance(leaf, int | float | complex):
            return jnp.result_type(leaf)
    except TypeError:
        pass
    raise TypeError(
        f"{by} needs arrays, but the leaf at {path!r} is a {type(leaf).__name__}; "
        f"leave it out with {remedy}."
    )
