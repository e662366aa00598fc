"""A moving average of the parameters, kept beside the optimizer's own state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks, windows
from .._core.alignment import Beside
from .._core.averages import EmaParamsState as EmaParamsState
from .._core.build import transformation
from .._core.paths import flatten
from .._core.schedules import at_step


def ema_params(
    decay: optax.ScalarOrSchedule,
    *,
    dtype: Any = None,
    debias: bool = False,
    every: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Averages the parameters over time; the updates pass as they are.

    With :math:`\theta_t` the parameters after update :math:`t`, which are those that
    ``update`` is given plus the updates,

    .. math::
        \bar\theta_t = \bar\theta_{t-1} + s_t\, (\theta_t - \bar\theta_{t-1}), \qquad
        s_t = 1 - d_t, \qquad \bar\theta_0 = \theta_0.

    With ``debias`` the start is forgotten: :math:`\bar\theta_t` is an average begun at
    zero, divided by the sum of its weights. Its state needs two more scalars, as

    .. math::
        s_t = \frac{1 - d_t}{1 - d_1 d_2 \cdots d_t}

    makes the stored average the corrected one at every step. Nothing is left to be
    corrected on reading: ``ema`` is what to evaluate, or what BYOL's target computes.

    It stands **last** in a chain, where the updates are those that will be added. Its
    state travels with the optimizer's: one checkpoint, one sharding, one donated
    buffer. ``nnx.EMA`` keeps Variables beside a model, outside of both;
    ``optax.incremental_update`` is a step of the arithmetic and keeps nothing;
    ``optax.ema`` averages the updates. :func:`averaged_params` puts it in the place of
    the parameters, in their dtype, and :func:`optaxtricks.nn.averaged` into an NNX
    model for a while. ``optax.tree.get(opt_state, "ema")`` is the average itself,
    however deep it lies, in its own dtype and buffer: copy what is to outlive a
    donation.

    Guarantees:
      - What is counted is optimizer steps: a schedule sees the number of earlier
        averages, so a window of calls of which the last alone moves the parameters
        gives what one call gives.
      - Updates pass untouched. A :class:`RowSparse` is added to the whole table.
      - Arithmetic is in float32 or wider, on parameters rounded to their own dtype as
        ``optax.apply_updates`` rounds them, compiled or not.
      - :math:`s_t = 0` keeps ``ema`` and :math:`s_t = 1` replaces it bit for bit,
        whatever stands in the other; a parameter that rests is reached exactly.
      - Integer and Boolean leaves are copied, not averaged.
      - No buffer of the parameters or the updates is shared; no communication on any
        sharding.
      - Of a ``jax.ShapeDtypeStruct`` ``init`` makes another, for a checkpoint to fill.

    Args:
      decay: :math:`d` in ``[0, 1]``, or a schedule of the number of earlier averages
        (``optax.inject_hyperparams`` counts calls for it, and rounds it to the
        parameters' dtype: in bfloat16, 0.999 is 1. Set its ``hyperparam_dtype``).
      dtype: floating dtype of the average; ``None`` takes each leaf's own or, where
        that is narrower, float32: in bfloat16 an average stands still once
        :math:`s_t` times the distance is below its rounding. Complex leaves take the
        complex dtype of that width. List it in ``static_args`` under
        ``optax.inject_hyperparams``.
      debias: whether the parameters before the first update count for nothing.
      every: the length of a window of calls: average at its last call only; in between
        nothing changes. ``None`` is 1. List it in ``static_args``.

    Returns:
      A transformation whose state is an :class:`EmaParamsState`. Its ``update`` needs
      ``params``.

    Raises:
      ValueError: an argument out of range; from ``update``, ``params`` is missing, or
        other leaves or shapes than ``init`` saw.
      TypeError: an argument of the wrong kind; from ``init``, a leaf that is no array.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = {"w": jnp.array([4.0])}
      >>> tx = optax.chain(optax.sgd(1.0), ot.ema_params(0.5))
      >>> state = tx.init(params)
      >>> updates, state = tx.update({"w": jnp.array([2.0])}, state, params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [2.0]
      >>> optax.tree.get(state, "ema")["w"].tolist()
      [3.0]

    References:
      Grill et al., 2020, `Bootstrap Your Own Latent
      <https://arxiv.org/abs/2006.07733>`_ (code: google-deepmind/deepmind-research,
      ``byol``). Polyak and Juditsky, 1992, "Acceleration of stochastic approximation
      by averaging".
    """
    checks.unit_interval(decay=decay)
    checks.flag(debias=debias)
    every = 1 if every is None else every
    checks.positive_int(every=every)
    dtype = checks.float_dtype(dtype=dtype)

    def init(params: optax.Params) -> EmaParamsState:
        checks.array_leaves(params, by="ema_params")
        none = lambda: jnp.zeros((), jnp.float32)
        return EmaParamsState(
            ema=jax.tree.map(lambda p: _copied(p, dtype), params),
            step=jnp.zeros((), jnp.int32) if callable(decay) else None,
            call=windows.first_call(every),
            weight=(none(), none()) if debias else None,
        )

    def update(
        updates: optax.Updates,
        state: EmaParamsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EmaParamsState]:
        del extra_args
        update_checks.state_of(EmaParamsState, state, by="ema_params")
        params = update_checks.given(params, updates, by="ema_params")
        step, call, weight = state.step, state.call, state.weight
        share = 1 - at_step(step, decay=decay)
        due: Any = True
        if call is not None:
            due, call = windows.next_call(call, every)
        if weight is not None:
            share, weight = _corrected(share, weight, due)
        ema = _over_leaves(state.ema, params, updates, (share, due))
        if step is not None:
            step = jnp.where(due, optax.safe_increment(step), step)
        return updates, EmaParamsState(ema=ema, step=step, call=call, weight=weight)

    return transformation(init, update, one_leaf=True)


def _copied(param: Any, dtype: Any) -> Any:
    own = jnp.result_type(param)
    if not jnp.issubdtype(own, jnp.inexact):
        dtype = own
    elif dtype is None:
        dtype = np.promote_types(own, np.float32)
    elif jnp.issubdtype(own, jnp.complexfloating):
        dtype = np.promote_types(dtype, np.complex64)
    if isinstance(param, jax.ShapeDtypeStruct):
        # Zeros would be averaged on, should the checkpoint never come.
        return jax.ShapeDtypeStruct(param.shape, dtype, sharding=param.sharding)
    return jnp.array(param, dtype=dtype, copy=True)


@jax.jit
def _corrected(
    share: Any, weight: tuple[jax.Array, jax.Array], due: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The new parameter's share of a mean of those so far, and the weights' sum."""
    share, (before, left) = jnp.asarray(share, jnp.float32), weight
    growth = left + share * (1 - before - left)
    after = jnp.where(share == 1, jnp.ones_like(before), before + growth)
    lost = growth - (after - before)
    # With no weight at all so far there is no mean, and the share is 0 anyway.
    corrected = share / jnp.where(after == 0, jnp.ones_like(after), after)
    return corrected, (jnp.where(due, after, before), jnp.where(due, lost, left))


def _over_leaves(ema: Any, params: Any, updates: Any, how: Any) -> Any:
    """The next average; its containers are those that `init` saw."""
    old = Beside(ema, updates, by="ema_params")
    triples = zip(old.leaves, flatten(params)[0], flatten(updates)[0], strict=True)
    return old.rebuilt([_averaged(*triple, how) for triple in triples])


# Jitted, so that leaves of one shape share one trace, and eager steps round like
# compiled ones.
@jax.jit
def _averaged(old: jax.Array, param: Any, update: Any, how: Any) -> jax.Array:
    share, due = how
    new = _moved(jnp.asarray(param), update)
    if not jnp.issubdtype(new.dtype, jnp.inexact):
        return jnp.where(due, new, old)
    # Of float16 and bfloat16 alone, NumPy knows no common dtype.
    wide = np.promote_types(np.promote_types(new.dtype, np.float32), old.dtype)
    before, after = old.astype(wide), new.astype(wide)
    if new.dtype == jnp.bfloat16:
        # XLA would leave out the rounding between two conversions.
        after = jax.lax.reduce_precision(after, exponent_bits=8, mantissa_bits=7)
    s = jnp.asarray(share, wide)
    # Written as a step toward the new value: with weights d and 1 - d, whose rounded
    # sum is not 1, the average of a constant would drift.
    mixed = before + s * (after - before)
    mixed = jnp.where(s == 1, after, mixed)
    return jnp.where(due & (s != 0), mixed, before).astype(old.dtype)


def _moved(param: jax.Array, update: Any) -> jax.Array:
    """The parameter as `optax.apply_updates` will leave it."""
    if getattr(update, "dtype", None) == jax.dtypes.float0:  # of an integer
        return param
    with jax.numpy_dtype_promotion("standard"):
        return jnp.asarray(param + update).astype(param.dtype)
