"""Lion's direction: the sign of momentum, without a second copy of it."""

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


@serialized_state
class LionState(NamedTuple):
    """State of :func:`scale_by_lion`.

    Attributes:
      mu: the momentum, laid out like the parameters.
      step: int32 scalar, the number of earlier updates; ``None`` unless the exponent
        is a schedule.
    """

    mu: optax.Updates
    step: jax.Array | None


def scale_by_lion(
    b1: Any = 0.9,
    b2: Any = 0.99,
    *,
    mu_dtype: Any = None,
    exponent: optax.ScalarOrSchedule = 0.0,
    dead_zone: Any = 0.0,
    cautious: bool = False,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Takes the sign of an interpolation between momentum and gradient (Lion).

    .. math::
        c_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \qquad
        u_t = \operatorname{sign}(c_t), \qquad
        m_t = \beta_2 m_{t-1} + (1 - \beta_2) g_t,

    with :math:`m_0 = 0`, no bias correction, and :math:`\operatorname{sign}(0) = 0`.

    The sign is taken of the *new* momentum: as :math:`\beta_2 c_t = \beta_1 m_t +
    (\beta_2 - \beta_1) g_t`, nothing reads the old momentum after the new one has
    taken its place, and a compiled step with donated buffers needs no temporary
    array. (``optax.scale_by_lion`` keeps a copy of the whole momentum there.)

    Guarantees:
      - Updates keep structure, shapes and dtypes; arithmetic is in at least float32.
      - In float32 and wider, the trajectory is that of ``optax.scale_by_lion`` (which
        rounds each product where leaves are narrower). Signs are exact where
        gradient or old momentum is zero, or both point the same way. Where they all
        but cancel, :math:`|c_t|` within a few roundings of its terms, the sign may
        come out otherwise than in Optax: there the two orders of summation differ.
      - A narrow momentum decides as it is kept, rounded: where :math:`|c_t|` is below
        half a unit in the last place of :math:`m_t`, the sign may come out otherwise.
      - NaN in, NaN out; no other entry sees it. It stays in the momentum.
      - With ``skip_nonfinite``, a leaf whose gradient holds NaN or infinity leaves
        its momentum as it is, bit for bit, and gets a zero update; other leaves go on.
        (``optax.apply_if_finite`` skips the step of all leaves instead, and lets the
        gradient through after a number of bad ones in a row.)
      - No communication on any sharding but a scalar a leaf for ``skip_nonfinite``.

    Args:
      b1: :math:`\beta_1` in ``(0, 1)``.
      b2: :math:`\beta_2` in ``(0, 1)``; recovering :math:`c_t` loses a factor
        :math:`1 / \beta_2` in precision, so below 0.1 or so signs near zero are noisy.
      mu_dtype: floating dtype of the momentum; ``None`` takes each leaf's own. List
        it in ``static_args`` under ``optax.inject_hyperparams``, and for narrow
        parameters give that ``hyperparam_dtype=jnp.float32``, or decays become 1. In
        bfloat16 some 0.2 % of the signs are others than in float32; float16 loses
        gradients below 1e-6 or so altogether (``benchmarks.bench_momentum``).
      exponent: :math:`e` in ``[0, 1]``, or a schedule of the step: the update is
        :math:`\operatorname{sign}(c)|c|^e`, so 0 is Lion and 1 momentum SGD
        (Powerball). For :math:`e > 0` the scale of the gradient matters.
      dead_zone: :math:`\tau \ge 0`; entries with :math:`|c| \le \tau` get 0.
      cautious: entries whose update does not point the gradient's way,
        :math:`u g \le 0`, get 0; the rest are not rescaled. An entry without a
        gradient then rests, which also stops the drift of rare embedding rows.
      skip_nonfinite: whether to test gradients, which reads them once more.

    Returns:
      A transformation whose state is a :class:`LionState`.

    Raises:
      ValueError: an argument out of range; from ``update``, other leaves or shapes
        than ``init`` saw.
      TypeError: an argument of the wrong kind; from ``init``, an integer or complex
        leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> tx = ot.scale_by_lion()
      >>> grads = jnp.array([3.0, -0.001, 0.0])
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> updates.tolist()
      [1.0, -1.0, 0.0]
      >>> tx.update(jnp.zeros(3), state)[0].tolist()  # momentum goes on
      [1.0, -1.0, 0.0]

    References:
      Chen et al., 2023, `Symbolic Discovery of Optimization Algorithms
      <https://arxiv.org/abs/2302.06675>`_ (code: google/automl, ``lion``). Yuan et
      al., 2019, `On the Powerball Method <https://arxiv.org/abs/1603.07421>`_, for
      the exponent. Liang et al., 2024, `Cautious Optimizers
      <https://arxiv.org/abs/2411.16085>`_ (code: lucidrains/lion-pytorch, which also
      divides by the mean of the mask).
    """
    checks.open_fraction(b1=b1, b2=b2)
    checks.flag(cautious=cautious, skip_nonfinite=skip_nonfinite)
    mu_dtype = checks.float_dtype(mu_dtype=mu_dtype)
    rule = SignRule(exponent, dead_zone)

    def init(params: optax.Params) -> LionState:
        checks.inexact_leaves(params, by="scale_by_lion", allow_complex=False)
        return LionState(
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            step=jnp.zeros((), jnp.int32) if rule.scheduled else None,
        )

    def update(
        updates: optax.Updates,
        state: LionState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, LionState]:
        del params, extra_args
        update_checks.state_of(LionState, state, by="scale_by_lion")
        betas, how = (b1, b2, 1 - b2, b2 - b1), rule.at(state.step)
        leaf = lambda g, m: _lion(g, m, betas, how, cautious, skip_nonfinite)
        updates, mu = over_leaves(leaf, updates, state.mu, by="scale_by_lion")
        step = state.step
        if step is not None:
            step = jnp.asarray(optax.safe_increment(step))
        return updates, LionState(mu=mu, step=step)

    return transformation(init, update)


# Jitted, so that leaves of one shape share one trace, and eager steps round like
# compiled ones.
@functools.partial(jax.jit, static_argnums=(4, 5))
def _lion(
    grad: jax.Array, mu: jax.Array, betas: Any, how: Any, cautious: bool, skip: bool
) -> tuple[jax.Array, jax.Array]:
    wide = np.promote_types(grad.dtype, np.float32)
    b1, b2, share, gap = (jnp.asarray(x, wide) for x in betas)
    g = grad.astype(wide)
    new = share * g + b2 * mu.astype(wide)
    good = all_finite(grad) if skip else None
    if good is not None:
        new = jnp.where(good, new, mu.astype(wide))
    # All of the update hangs on what is kept, or a TPU takes two passes where that is
    # narrower: one for the parameter, one for the momentum.
    kept = new.astype(mu.dtype)
    interpolated = b1 * kept.astype(wide) + gap * g
    # An infinite gradient decides alone; by the sum it would be a NaN for b1 >= b2.
    interpolated = jnp.where(jnp.isinf(g) & (kept != 0), g, interpolated)
    if how != (None, None):  # a sign alone needs no scale
        interpolated = interpolated / b2
    u = relaxed_sign(interpolated, how)
    if cautious:
        u = jnp.where(u * g > 0, u, jnp.zeros((), wide))
    if good is not None:
        u = jnp.where(good, u, jnp.zeros((), wide))
    return u.astype(grad.dtype), kept
