"""How far an embedding table has drifted toward the bound of its weight decay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.counts import fraction, split_count, total_count


def embedding_health(table: Any, weight_decay: Any) -> dict[str, jax.Array]:
    r"""Measures the drift of rare rows that sign methods cause.

    An entry whose update keeps its sign :math:`s` moves to :math:`-s / \lambda`, where
    weight decay balances it. Rows stuck there are those that no longer learn.

    Args:
      table: floats of shape ``(rows, ...)``.
      weight_decay: :math:`\lambda > 0`, the decoupled decay that the table trains with.

    Returns:
      float32 scalars by name:

      - ``"max_times_decay"``: :math:`\lambda \max_i |\theta_i|`; 1 at the bound.
      - ``"stuck_entries"``: the fraction of entries with
        :math:`|\theta_i| > 0.5 / \lambda`.
      - ``"stuck_rows"``: the fraction of rows more than half of whose entries are.

    Raises:
      ValueError: a table of rank 0 or without entries; ``weight_decay`` not positive.
      TypeError: a table that is not of real floats.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> table = jnp.array([[10.0, -9.0, 0.5], [0.1, 8.0, 0.2]])
      >>> health = ot.embedding_health(table, 0.1)
      >>> {name: round(float(value), 2) for name, value in health.items()}
      {'max_times_decay': 1.0, 'stuck_entries': 0.5, 'stuck_rows': 0.5}

    References:
      Su, 2023, "Embeddings and the sign optimizers", kexue.fm archive 9736.
    """
    checks.positive(weight_decay=weight_decay)
    table = checks.real_array(table=table)
    if jnp.ndim(table) == 0 or not jnp.size(table):
        raise ValueError(f"table must have rows, got shape {jnp.shape(table)}.")
    size = jnp.abs(table.astype(jnp.float32)) * jnp.asarray(weight_decay, jnp.float32)
    stuck = size > np.float32(0.5)
    rows = stuck.shape[0]
    by_row = stuck.reshape(rows, -1).sum(axis=1, dtype=jnp.uint32)
    most = by_row > np.uint32(stuck.size // rows // 2)
    return {
        "max_times_decay": size.max(),
        "stuck_entries": fraction(total_count(by_row, stuck.size), stuck.size),
        "stuck_rows": fraction(split_count(most.sum(dtype=jnp.uint32)), rows),
    }
