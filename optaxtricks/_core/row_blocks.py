"""Rows of a table at ids that are distinct but for padding, read and written."""

from typing import Any

import jax
import numpy as np

from .shardings import typed_sharding, whole_rows


def read_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows at `ids`; padding reads zeros."""
    whole = whole_rows(table)
    return table.at[ids].get(mode="fill", fill_value=0, out_sharding=whole)


def write_rows(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """The table with other rows at `ids`, in place if it is donated."""
    arguments = table, ids, rows
    return jax.lax.platform_dependent(*arguments, cpu=_branched, default=_written)


def _written(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    # That ids ascend is not said: for such a TPU passes over the whole table.
    return table.at[ids].set(
        rows,
        mode="drop",
        unique_indices=True,
        out_sharding=typed_sharding(table),
    )


def _branched(table: jax.Array, ids: jax.Array, rows: jax.Array) -> Any:
    # What goes into a branch is an array of its own. Without one, XLA's CPU backend
    # works out new rows of a state twice, here and for the update, and holds what they
    # are made of meanwhile: in Adam's step five blocks of rows, and not three.
    either = jax.lax.optimization_barrier(np.True_)
    return jax.lax.cond(either, _written, _written, table, ids, rows)
