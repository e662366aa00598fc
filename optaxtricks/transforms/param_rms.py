"""Steps relative to the size of the parameter: its root mean square as a factor."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.grouping import acting, total
from .._core.scaling import scaled
from .._core.selectors import Selector, row_matches


def scale_by_param_rms(
    *, floor: Any = 1e-3, rows: Selector | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies each leaf's update by the root mean square of its parameter.

    .. math::
        u \leftarrow \max\bigl(\operatorname{RMS}(\theta), \varepsilon\bigr)\, u,
        \qquad \operatorname{RMS}(\theta) = \sqrt{\tfrac1n \textstyle\sum_i \theta_i^2},

    with :math:`\varepsilon` the ``floor``. After a sign, a learning rate then says by
    which fraction of its size a matrix moves (Tiger; LAMB where no sign is zero).
    Put weight decay before it in the chain to have it scaled alike.

    Leaves of ``rows`` (embedding tables) are scaled row by row, an index of axis 0
    being a row. Such a row grows geometrically: one whose sign never changes comes
    near the bound of :math:`\pm 1/\lambda` that weight decay sets in far fewer
    steps than at a fixed rate.

    Guarantees:
      - Updates keep structure, shapes and dtypes; the mean is taken in float32 or
        wider, over the parameters before the step (of entries from 1e-19 to 1e19:
        beyond, their squares leave its range).
      - With ``floor > 0`` leaves of zeros can move; with 0 they never do.
      - Communication: a scalar a leaf, and a vector of row sums for ``rows`` whose
        columns are sharded.

    Args:
      floor: :math:`\varepsilon \ge 0`.
      rows: a selector (see :func:`select`) of leaves to scale by row.

    Returns:
      A transformation without state. Its ``update`` needs ``params``.

    Raises:
      ValueError: ``floor`` is negative; ``rows`` matches no leaf, or a scalar; from
        ``update``, ``params`` is missing or laid out otherwise.
      TypeError: an argument of the wrong kind; from ``init``, an integer or complex
        leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> params = {"emb": jnp.array([[3.0, 3.0], [0.0, 0.0]]), "w": jnp.full(4, 2.0)}
      >>> tx = ot.scale_by_param_rms(floor=0.5, rows="emb")
      >>> ones = {"emb": jnp.ones((2, 2)), "w": jnp.ones(4)}
      >>> updates, _ = tx.update(ones, tx.init(params), params)
      >>> updates["emb"].tolist(), updates["w"].tolist()
      ([[3.0, 3.0], [0.5, 0.5]], [2.0, 2.0, 2.0, 2.0])

    References:
      Su, 2023, "Tiger: a tight-fisted optimizer", kexue.fm archive 9512 (code:
      bojone/tiger, which has no floor). You et al., 2019, `Large Batch Optimization
      for Deep Learning <https://arxiv.org/abs/1904.00962>`_ (LAMB).
    """
    checks.non_negative(floor=floor)

    def init(params: optax.Params) -> optax.EmptyState:
        checks.inexact_leaves(params, by="scale_by_param_rms", allow_complex=False)
        _by_row(params, rows)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        update_checks.state_of(optax.EmptyState, state, by="scale_by_param_rms")
        checks.inexact_leaves(updates, by="scale_by_param_rms", allow_complex=False)
        params = update_checks.given(params, updates, by="scale_by_param_rms")
        leaves, layout = jax.tree.flatten(updates)
        out = [
            scaled(u, _rms(p, jnp.result_type(u), floor, by_row))
            for u, p, by_row in zip(
                leaves, jax.tree.leaves(params), _by_row(params, rows), strict=True
            )
        ]
        return jax.tree.unflatten(layout, out), state

    return transformation(init, update)


def _by_row(params: optax.Params, rows: Selector | None) -> list[bool]:
    if rows is None:
        return [False] * len(jax.tree.leaves(params))
    return row_matches(params, rows, name="rows")


def _rms(param: Any, dtype: Any, floor: Any, by_row: bool) -> jax.Array:
    """The factor of a leaf, or of each of its rows, for an update of this dtype."""
    wide = np.promote_types(dtype, np.float32)
    square = jnp.square(jnp.asarray(param).astype(wide))
    axes = tuple(range(int(by_row), square.ndim))
    sums = total(square, axes).reshape(square.shape[: int(by_row)] + (1,) * len(axes))
    # An empty leaf has no mean, and no entry that would need one.
    count = math.prod(square.shape[int(by_row) :])
    mean = sums / jnp.asarray(count, wide) if square.size else square
    rms, floor = acting(jnp.sqrt(mean)), jnp.asarray(floor, wide)
    # A maximum would let XLA fuse all this into one call that writes out the product.
    return jnp.where(rms < floor, floor, rms)
