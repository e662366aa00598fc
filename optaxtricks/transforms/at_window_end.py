"""The quiet part of gradient accumulation: act once a window, keep still between."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.serialized import serialized_state
from .._core.windows import counts_calls, first_call, next_call


@counts_calls(rests="inner")
@serialized_state
class AtWindowEndState(NamedTuple):
    """State of :func:`at_window_end`.

    Attributes:
      call: int32 scalar, the number of earlier calls in this window; ``None`` with
        ``accumulate_steps=1``.
      inner: the state of the wrapped transformation, which counts windows.
    """

    call: jax.Array | None
    inner: optax.OptState


def at_window_end(
    inner: optax.GradientTransformation, *, accumulate_steps: int
) -> optax.GradientTransformationExtraArgs:
    r"""Lets a transformation act at the last step of every window only.

    .. math::
        u_t \leftarrow [\, k \mid t \,] \; \mathrm{inner}(u_t), \qquad t = 1, 2, \dots

    Inside a window the updates are zero and the state of ``inner`` rests, so its
    schedules count windows. For what follows a transformation that accumulates by
    itself (:func:`scale_by_tiger`): weight decay, scaling, the learning rate. Other
    optimizers accumulate in ``optax.MultiSteps``, which does this too, with a buffer.

    Guarantees:
      - Inside a window all updates are exactly zero, and ``inner``'s state stays as
        it is, bit for bit.
      - No branch: XLA fuses it into the optimizer's loop, without a temporary array.

    Args:
      inner: what is to act once a window.
      accumulate_steps: :math:`k`, the length of a window, at least 1.

    Returns:
      A transformation whose state is an :class:`AtWindowEndState`.

    Raises:
      ValueError: ``accumulate_steps`` is below 1.
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> rate = lambda window: jnp.where(window < 1, 1.0, 2.0)
      >>> tx = ot.at_window_end(optax.sgd(rate), accumulate_steps=2)
      >>> state, seen = tx.init(jnp.ones(())), []
      >>> for _ in range(4):
      ...     update, state = tx.update(jnp.ones(()), state)
      ...     seen.append(float(update))
      >>> seen
      [0.0, -1.0, 0.0, -2.0]

    References:
      Su, 2023, "Tiger: a tight-fisted optimizer", kexue.fm archive 9512 (code:
      bojone/tiger, ``grad_accum_steps``).
    """
    checks.optimizer(inner=inner)
    checks.positive_int(accumulate_steps=accumulate_steps)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> AtWindowEndState:
        checks.inexact_leaves(params, by="at_window_end")
        return AtWindowEndState(
            call=first_call(accumulate_steps), inner=inner.init(params)
        )

    def update(
        updates: optax.Updates,
        state: AtWindowEndState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AtWindowEndState]:
        update_checks.state_of(AtWindowEndState, state, by="at_window_end")
        proposed, after = inner.update(updates, state.inner, params, **extra_args)
        if state.call is None:
            return proposed, AtWindowEndState(call=None, inner=after)
        acts, call = next_call(state.call, accumulate_steps)
        still = lambda u: jnp.where(acts, u, jnp.zeros_like(u))
        keep = lambda new, old: jnp.where(acts, new, old)
        return jax.tree.map(still, proposed), AtWindowEndState(
            call=call, inner=jax.tree.map(keep, after, state.inner)
        )

    return transformation(init, update)
