"""Child-Tuning: training a part of the entries, fixed (D) or drawn anew (F)."""

from typing import Any, NamedTuple

import optax

from .._core import checks, update_checks
from .._core.alignment import params_like
from .._core.build import transformation
from .._core.counter_hash import AxisName
from .._core.frozen_leaves import floats_alone, with_others
from .._core.serialized import serialized_state
from ..transforms.dropout import gradient_dropout
from ..transforms.keep_entries import KeepEntriesState, keep_entries


@serialized_state
class ChildTuningDState(NamedTuple):
    """State of :func:`child_tuning_d`.

    Attributes:
      mask: the state of :func:`keep_entries`, which serves ahead of the wrapped
        optimizer and behind it.
      inner: the state of the wrapped optimizer.
    """

    mask: KeepEntriesState
    inner: optax.OptState


def child_tuning_d(
    inner: optax.GradientTransformation,
    mask: Any,
    *,
    rescale: bool = False,
    decay_frozen: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Task-driven Child-Tuning: trains the entries of a fixed mask (also FISH).

    .. math::
        \theta_i \leftarrow \theta_i + M_i \, \mathrm{inner}(M g)_i

    In order: :func:`keep_entries` on the gradients, ``inner``, and :func:`keep_entries`
    on its updates, with one mask in the state. The second one keeps the weight decay of
    ``inner`` away from the entries that are not trained: they stay bit for bit what
    they were, for ever. The published code masks gradients only and so decays every
    entry, toward zero and not toward the pretrained value; ``decay_frozen=True`` does
    as it does. Clip before this transformation: the reference order is clip, mask,
    moments.

    It costs the time and the state of ``inner`` on everything, whatever the fraction
    kept. Where memory counts, or few entries or whole tiles are kept,
    :func:`compact_entries` takes less; it says at which fractions on which machine.

    A leaf under ``False`` may be of any numbers and have any gradient, as with
    :func:`keep_entries`; ``inner`` sees ``optax.MaskedNode`` in place of one that is no
    float.

    With ``decay_frozen=True`` on float16 parameters, give Adam ``eps=1e-4``, or keep
    parameters in float32: its 1e-8 is 0 there, and an entry that is not trained comes
    to 0 / 0.

    Args:
      inner: a complete optimizer, such as ``optax.adamw(1e-5)``.
      mask: which entries are trained, as :func:`keep_entries` takes it, so that bools
        of shape ``(L, 1, 1)`` choose whole layers of a stack;
        :func:`top_fraction_mask` of :func:`fisher_information` is the method's own.
      rescale: divide kept gradients by the kept fraction. The published code does
        not. Adam is blind to it up to epsilon.
      decay_frozen: leave out the mask behind ``inner``.

    Returns:
      A transformation whose state is a :class:`ChildTuningDState`; it holds the mask
      once, at one bit an entry of its arrays.

    Raises:
      ValueError, TypeError: as :func:`keep_entries`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = jnp.ones(3)
      >>> decayed = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0))
      >>> tx = ot.child_tuning_d(decayed, jnp.array([True, False, False]))
      >>> updates, _ = tx.update(jnp.ones(3), tx.init(params), params)
      >>> optax.apply_updates(params, updates).tolist()
      [-0.5, 1.0, 1.0]

    References:
      Xu et al., 2021, `Raise a Child in Large Language Model
      <https://arxiv.org/abs/2109.05687>`_ (code: alibaba/AliceMind,
      ``ChildTuningD.py``). Sung et al., 2021, `Training Neural Networks with Fixed
      Sparse Masks <https://arxiv.org/abs/2111.09839>`_ (code: varunnair18/FISH).
    """
    checks.optimizer(inner=inner)
    checks.flag(decay_frozen=decay_frozen)
    inner = optax.with_extra_args_support(inner)
    masked: Any = keep_entries(mask, rescale=rescale)

    def init(params: optax.Params) -> ChildTuningDState:
        return ChildTuningDState(
            mask=masked.init(params), inner=inner.init(floats_alone(params))
        )

    def update(
        updates: optax.Updates,
        state: ChildTuningDState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ChildTuningDState]:
        update_checks.state_of(ChildTuningDState, state, by="child_tuning_d")
        grads, _ = masked.update(updates, state.mask, params)
        seen = params
        if params is not None:
            seen = floats_alone(params_like(params, grads, by="child_tuning_d"))
        proposed, after = inner.update(
            floats_alone(grads), state.inner, seen, **extra_args
        )
        out = with_others(proposed, grads)
        if not decay_frozen:
            # The same mask, but what comes out of the optimizer is not rescaled.
            plain = KeepEntriesState(bits=state.mask.bits, factor=None)
            out, _ = masked.update(out, plain, params)
        return out, ChildTuningDState(mask=state.mask, inner=after)

    return transformation(init, update)


def child_tuning_f(
    inner: optax.GradientTransformation,
    keep_rate: optax.ScalarOrSchedule,
    *,
    key: Any,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Task-free Child-Tuning: a fresh random part of the gradient at every step.

    .. math::
        \theta \leftarrow \theta + \mathrm{inner}(M g / p), \qquad
        M_i \sim \mathrm{Bernoulli}(p)

    The chain is, in order: :func:`gradient_dropout` with rescaling, and ``inner``.
    Momentum goes on moving entries while they are masked, as in the published code.
    On float16 parameters give Adam ``eps=1e-4``, or keep parameters in float32: its
    1e-8 is 0 there, and an entry masked from the first step on comes to 0 / 0.

    Args:
      inner: a complete optimizer, such as ``optax.adamw(1e-5)``.
      keep_rate: probability :math:`p` in ``(0, 1]`` that an entry of the gradient
        survives, or a schedule of the step.
      key: as :func:`gradient_dropout` takes it. Under ``optax.inject_hyperparams`` list
        it in ``static_args``, and with narrow parameters give
        ``hyperparam_dtype=jnp.float32``: ``keep_rate`` would be rounded to their dtype.
      axis_name: mapped axes whose shards draw anew; see :func:`gradient_dropout`.

    Returns:
      A transformation.

    Raises:
      ValueError, TypeError: as :func:`gradient_dropout`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> tx = ot.child_tuning_f(optax.sgd(1.0), 0.25, key=0)
      >>> grads = jnp.ones(1000)
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> sorted(set(updates.tolist()))
      [-4.0, -0.0]

    References:
      Xu et al., 2021, `Raise a Child in Large Language Model
      <https://arxiv.org/abs/2109.05687>`_ (code: alibaba/AliceMind,
      ``ChildTuningF.py``).
    """
    checks.optimizer(inner=inner)
    ahead = gradient_dropout(keep_rate, key=key, axis_name=axis_name)
    return optax.chain(ahead, inner)
