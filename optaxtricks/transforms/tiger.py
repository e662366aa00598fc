"""Tiger's direction: one momentum, which is the gradient accumulator as well."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.finite import all_finite
from .._core.leaf_rules import over_leaves
from .._core.serialized import serialized_state
from .._core.signs import SignRule, relaxed_sign
from .._core.windows import counts_calls, first_call, next_call


@counts_calls()
@serialized_state
class TigerState(NamedTuple):
    """State of :func:`scale_by_tiger`.

    Attributes:
      mu: the momentum, laid out like the parameters.
      call: int32 scalar, the number of earlier calls in this window; ``None`` with
        ``accumulate_steps=1``.
      step: int32 scalar, the number of earlier windows; ``None`` unless the exponent
        is a schedule.
    """

    mu: optax.Updates
    call: jax.Array | None
    step: jax.Array | None


def scale_by_tiger(
    beta: Any = 0.965,
    *,
    accumulate_steps: int | None = None,
    mu_dtype: Any = None,
    exponent: optax.ScalarOrSchedule = 0.0,
    dead_zone: Any = 0.0,
    skip_nonfinite: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the sign of momentum, and accumulates gradients inside it (Tiger).

    Over a window of :math:`k` (``accumulate_steps``) calls with gradients
    :math:`g_1, \dots, g_k`,

    .. math::
        m \leftarrow \beta m + (1 - \beta) \frac1k \sum_{i=1}^k g_i, \qquad
        u = \operatorname{sign}(m) \text{ at the last call, and } 0 \text{ before}.

    The sum runs inside :math:`m`: the first call of a window decays it, each adds its
    share. There is no second accumulator, so the state is one array a parameter. What
    follows in the chain must keep still inside the window too, as
    :func:`at_window_end` makes it; :func:`tiger` is such a chain.

    Guarantees:
      - Updates keep structure, shapes and dtypes; arithmetic is in at least float32.
      - Inside a window all updates are exactly zero.
      - The result equals, up to rounding, ``accumulate_steps=1`` on window means.
      - With ``skip_nonfinite``, a leaf whose gradient holds NaN or infinity leaves
        its momentum as it is, bit for bit, and gets a zero update; where that is the
        first call of a window, the window's decay is left out as well, as in the
        published code. Other leaves go on.
      - No communication on any sharding but a scalar a leaf for ``skip_nonfinite``.

    Args:
      beta: :math:`\beta` in ``(0, 1)``; 0.945 for vision and 0.965 for language are
        recommended.
      accumulate_steps: :math:`k`, at least 1; ``None`` is 1. List it in
        ``static_args`` under ``optax.inject_hyperparams``, and for narrow parameters
        give that ``hyperparam_dtype=jnp.float32``, or ``beta`` may become 1.
      mu_dtype: floating dtype of the momentum; ``None`` takes each leaf's own. List
        it in ``static_args`` under ``optax.inject_hyperparams``. Inside a window a
        narrow momentum is rounded at every call. In bfloat16 some 0.2 % of the signs
        are others than in float32; float16 loses gradients below 1e-6 or so altogether
        (``benchmarks.bench_momentum``).
      exponent: :math:`e` in ``[0, 1]``, or a schedule of the window's number: the
        update is :math:`\operatorname{sign}(m)|m|^e`.
      dead_zone: :math:`\tau \ge 0`; entries with :math:`|m| \le \tau` get 0.
      skip_nonfinite: whether to test gradients; without it NaN stays in the momentum.

    Returns:
      A transformation whose state is a :class:`TigerState`.

    Raises:
      ValueError: an argument out of range; from ``update``, other leaves or shapes
        than ``init`` saw.
      TypeError: an argument of the wrong kind; from ``init``, an integer or complex
        leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> tx = ot.scale_by_tiger(0.5, accumulate_steps=2)
      >>> state = tx.init(jnp.zeros(2))
      >>> updates, state = tx.update(jnp.array([3.0, -1.0]), state)
      >>> updates.tolist()
      [0.0, 0.0]
      >>> updates, state = tx.update(jnp.array([-1.0, -1.0]), state)
      >>> updates.tolist(), state.mu.tolist()
      ([1.0, -1.0], [0.5, -0.5])

    References:
      Su, 2023, "Tiger: a tight-fisted optimizer", kexue.fm archive 9512 (code:
      bojone/tiger, which tests for NaN only).
    """
    checks.open_fraction(beta=beta)
    k = 1 if accumulate_steps is None else accumulate_steps
    checks.positive_int(accumulate_steps=k)
    checks.flag(skip_nonfinite=skip_nonfinite)
    mu_dtype = checks.float_dtype(mu_dtype=mu_dtype)
    rule = SignRule(exponent, dead_zone)

    def init(params: optax.Params) -> TigerState:
        checks.inexact_leaves(params, by="scale_by_tiger", allow_complex=False)
        return TigerState(
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            call=first_call(k),
            step=jnp.zeros((), jnp.int32) if rule.scheduled else None,
        )

    def update(
        updates: optax.Updates,
        state: TigerState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, TigerState]:
        del params, extra_args
        update_checks.state_of(TigerState, state, by="scale_by_tiger")
        place, call, step = None, state.call, state.step
        betas, how = (beta, (1 - beta) / k), rule.at(step)
        if call is not None:
            ends, after = next_call(call, k)
            place, call = (call == 0, ends), after
        leaf = lambda g, m: _tiger(g, m, betas, how, place, skip_nonfinite)
        updates, mu = over_leaves(leaf, updates, state.mu, by="scale_by_tiger")
        if step is not None:
            more = jnp.asarray(optax.safe_increment(step))
            step = more if place is None else jnp.where(place[1], more, step)
        return updates, TigerState(mu=mu, call=call, step=step)

    return transformation(init, update)


# Jitted, so that leaves of one shape share one trace, and eager steps round like
# compiled ones.
@functools.partial(jax.jit, static_argnums=5)
def _tiger(
    grad: jax.Array, mu: jax.Array, betas: Any, how: Any, place: Any, skip: bool
) -> tuple[jax.Array, jax.Array]:
    wide = np.promote_types(grad.dtype, np.float32)
    decay, share = (jnp.asarray(x, wide) for x in betas)
    passes = None
    if place is not None:
        begins, passes = place
        decay = jnp.where(begins, decay, jnp.ones((), wide))
    old = mu.astype(wide)
    new = decay * old + share * grad.astype(wide)
    if skip:
        good = all_finite(grad)
        new = jnp.where(good, new, old)
        passes = good if passes is None else good & passes
    # Read from what is kept, so that it can take the old momentum's place in memory.
    kept = new.astype(mu.dtype)
    u = relaxed_sign(kept.astype(wide), how)
    if passes is not None:
        u = jnp.where(passes, u, jnp.zeros((), wide))
    return u.astype(grad.dtype), kept
