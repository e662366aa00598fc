"""A factor for every leaf, by its path: layer-wise rates, a faster predictor."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.paths import flatten
from .._core.scaling import scaled
from .._core.schedules import at_step
from ..selection.labels import label_by_path
from ..selection.row_sparse import RowSparse


class ScaleByPathState(NamedTuple):
    """State of :func:`scale_by_path`.

    Attributes:
      step: int32 scalar, the number of earlier updates; ``None`` unless some factor
        is a schedule.
    """

    step: jax.Array | None


def scale_by_path(
    factors: Mapping[str, optax.ScalarOrSchedule],
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies updates by factors chosen by regular expressions on their paths.

    .. math::
        u_\ell \leftarrow \kappa_{j(\ell)}\, u_\ell, \qquad
        j(\ell) = \text{the first pattern found in the path of leaf } \ell,

    and :math:`u_\ell` as it is where no pattern is found. Some uses: layer-wise decay
    of the rate, ``{f"layer/{i}/": 0.8 ** (11 - i) for i in range(12)}``; half a rate
    for biases, ``{"bias$": 0.5}``; the predictor of SimSiam or BYOL on a faster time
    scale than its encoder, ``{"^predictor/": 10.0}``.

    Put it behind what normalises gradients: Adam and sign methods do not see the scale
    of what comes in. Behind weight decay it scales that too, as a rate of the leaf's
    own would. For a rate that is not a multiple of the others', see
    :func:`two_timescale`.

    Guarantees:
      - Updates keep structure, shapes and dtypes; the product is taken in float32 or
        wider. A :class:`RowSparse` has its values scaled.
      - A factor of exactly 1, and no factor, pass the update bit for bit.
      - Without a schedule the state holds nothing.
      - No communication on any sharding.

    Args:
      factors: pattern -> a number :math:`\kappa \ge 0` or a schedule of the step, in
        order of precedence. A factor may be traced, as by ``vmap`` over factors.

    Returns:
      A transformation whose state is a :class:`ScaleByPathState`.

    Raises:
      ValueError: ``factors`` is empty, a pattern is invalid or a factor is negative or
        not finite; from ``init``, a pattern that matches no leaf (the message lists
        the paths; a pattern shadowed by earlier ones is no error).
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> grads = {"encoder": {"w": jnp.ones(2), "b": jnp.ones(1)}, "predictor": 1.0}
      >>> tx = ot.scale_by_path({"^predictor": 10.0, "/b$": 0.5})
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> {k: v.tolist() for k, v in updates["encoder"].items()}
      {'b': [0.5], 'w': [1.0, 1.0]}
      >>> float(updates["predictor"])
      10.0

    References:
      Su, 2020, "A qualitative analysis of BYOL and SimSiam by fast and slow dynamics",
      kexue.fm archive 7980, for the predictor. Grill et al., 2020, `Bootstrap Your Own
      Latent <https://arxiv.org/abs/2006.07733>`_, whose appendix raises its rate.
      Howard and Ruder, 2018, `Universal Language Model Fine-tuning
      <https://arxiv.org/abs/1801.06146>`_, for layer-wise rates.
    """
    _check_factors(factors)
    factors = dict(factors)
    # Each leaf's pattern; the default is no pattern, as "" would match every leaf.
    patterns = label_by_path({pattern: pattern for pattern in factors}, default="")
    scheduled = any(callable(factor) for factor in factors.values())

    def init(params: optax.Params) -> ScaleByPathState:
        checks.inexact_leaves(params, by="scale_by_path")
        patterns(params)
        return ScaleByPathState(step=jnp.zeros((), jnp.int32) if scheduled else None)

    def update(
        updates: optax.Updates,
        state: ScaleByPathState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByPathState]:
        del params, extra_args
        update_checks.state_of(ScaleByPathState, state, by="scale_by_path")
        update_checks.inexact_updates(updates, by="scale_by_path")
        step = state.step
        now = {pattern: at_step(step, factor=f) for pattern, f in factors.items()}
        leaves, layout = flatten(updates)
        found = jax.tree.leaves(patterns(updates))
        pairs = zip(leaves, found, strict=True)
        out = [_times(u, now.get(pattern, 1)) for u, pattern in pairs]
        if step is not None:
            step = jnp.asarray(optax.safe_increment(step))
        return jax.tree.unflatten(layout, out), ScaleByPathState(step=step)

    return transformation(init, update, one_leaf=True)


def _check_factors(factors: Any) -> None:
    if not isinstance(factors, Mapping):
        raise TypeError(f"factors must map patterns to factors, got {factors!r}.")
    if not factors:
        raise ValueError("factors must hold at least one pattern.")
    for pattern, factor in factors.items():
        if not isinstance(pattern, str):
            raise TypeError(f"factors must have str keys, got {pattern!r}.")
        if not callable(factor):
            checks.non_negative(**{f"factors[{pattern!r}]": factor})


def _times(update: Any, factor: Any) -> Any:
    if isinstance(factor, int | float) and factor == 1:
        return update
    if isinstance(update, RowSparse):
        rows = update.sound()
        return rows.with_values(scaled(rows.values, factor))
    return scaled(update, factor)
