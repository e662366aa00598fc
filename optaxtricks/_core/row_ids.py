"""Ids of rows: checked, brought into range, and as flags of a table's rows."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import checks
from .paths import listing
from .total_passes import neighbours


def ids_array(**named: Any) -> jax.Array:
    """The argument as an array; an empty list, which has no dtype, gives integers."""
    array = checks.array(**named)
    (ids,) = named.values()
    return (
        array.astype(jnp.int32) if isinstance(ids, list) and not array.size else array
    )


def in_range(ids: jax.Array, num_rows: int) -> jax.Array:
    """The same ids in int32, with `num_rows`, padding, for those out of range."""
    if ids.dtype.itemsize < 4:  # which may not hold num_rows
        ids = ids.astype(jnp.int32)
    outside = (ids < 0) | (ids >= num_rows)
    return jnp.where(outside, num_rows, ids).astype(jnp.int32)


def check_ids(ids: Any, num_rows: int, *, what: str, padding: bool) -> None:
    """Rejects ids that are no integers and, if they are known, ones out of range."""
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{what} must be integers, got {ids.dtype}.")
    if isinstance(ids, jax.core.Tracer) or not ids.size:
        return
    top = num_rows if padding else num_rows - 1
    known = np.asarray(ids)  # outside of any trace
    low, high = int(known.min()), int(known.max())
    if low < 0 or high > top:
        raise ValueError(f"{what} must lie in [0, {top}], got {low} to {high}.")


def by_path(rows: Any, tables: list[str], gaps: list[str]) -> dict[str, Any]:
    """The argument `active_rows` as a dict of paths, each that of a table.

    A table among the `gaps`, which Optax took out, belongs to another optimizer.
    """
    if not isinstance(rows, Mapping):
        raise TypeError(f"active_rows must map paths to rows, got {rows!r}.")
    flat = dict(_flat("", rows))
    if unknown := [path for path in flat if path not in tables + gaps]:
        raise ValueError(
            f"active_rows names {listing(unknown)}; the tables are {listing(tables)}."
        )
    return flat


def touched(path: str, grad: jax.Array, active: Any) -> jax.Array:
    """A bool for each row of a table: as `active` says or, without it, its gradient."""
    if active is None:
        return jax.lax.platform_dependent(grad, cpu=_by_runs, default=_nonzero_rows)
    num_rows, what = grad.shape[0], f"active_rows[{path!r}]"
    active = ids_array(**{what: active})
    if active.dtype == bool:
        if active.shape != (num_rows,):
            raise ValueError(
                f"{what} must have shape ({num_rows},) if it is bool, got "
                f"{active.shape}."
            )
        return active
    check_ids(active, num_rows, what=what, padding=True)
    ids = in_range(active, num_rows).reshape(-1)
    return jnp.zeros(num_rows, bool).at[ids].set(True, mode="drop")


def _nonzero_rows(grad: jax.Array) -> jax.Array:
    return jnp.any(grad != 0, axis=tuple(range(1, grad.ndim)))


def _by_runs(grad: jax.Array) -> jax.Array:
    # XLA's CPU backend writes bools that it is to reduce to memory first, but not those
    # of which it counts runs; it would merge reductions of one kind.
    if grad.ndim < 2:
        return grad != 0
    counts = [jnp.sum(run != 0, axis=-1, dtype=np.uint8) for run in neighbours(grad)]
    rows = [_nonzero_rows(count) for count in counts]
    return functools.reduce(jnp.logical_or, rows)


def _flat(above: str, rows: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(path, rows) of a mapping whose keys are paths or, nested, parts of paths."""
    found = []
    for key, value in rows.items():
        path = f"{above}{key}"
        below = isinstance(value, Mapping)
        found += _flat(f"{path}/", value) if below else [(path, value)]
    return found
