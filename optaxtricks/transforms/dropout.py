"""Dropout on what flows through a chain: gradients before the optimizer, or updates
after it."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.counter_hash import (
    GRANULARITIES,
    AxisName,
    Granularity,
    axis_names,
    index_axes,
    key_words,
    last_kept_word,
    leaf_words,
    shard_words,
    step_words,
)
from .._core.grouping import read_by_few
from .._core.noise import NOISE
from .._core.paths import leaves_with_paths, path_order
from .._core.schedules import at_step
from .._core.serialized import serialized_state

Distribution = Literal["bernoulli", "gaussian"]


@serialized_state
class DropoutState(NamedTuple):
    """State of :func:`gradient_dropout` and :func:`update_dropout`.

    Attributes:
      words: for each leaf, in the order of their paths as strings, two uint32 words
        drawn from key and path; for a tree without leaves, a placeholder of the same
        shape.
      step: int32 scalar, the number of earlier updates.
    """

    words: tuple[jax.Array, ...] | jax.Array
    step: jax.Array


def gradient_dropout(
    keep_rate: optax.ScalarOrSchedule,
    *,
    key: Any,
    rescale: bool = True,
    granularity: Granularity = "element",
    distribution: Distribution = "bernoulli",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Drops a fresh random part of every gradient (Child-Tuning-F, DropGrad).

    Each entry survives with probability :math:`p` (``keep_rate``), independently of
    all other entries and steps, and survivors are rescaled:

    .. math::
        g_i \leftarrow M_i \, g_i / p, \qquad M_i \sim \mathrm{Bernoulli}(p),

    or, with ``distribution="gaussian"``, :math:`g_i \leftarrow n_i g_i` with
    :math:`n_i \sim \mathcal{N}(1, (1 - p)/p)`, which has the same mean and variance
    and may be negative.

    Place it before the optimizer, after any clipping: the reference order is clip,
    mask, moments. The moments see the masked gradient, so entries go on moving on
    momentum while they are masked; :func:`update_dropout` stops them. Under SGD the
    variance of a gradient of mean :math:`\mu` and variance :math:`\sigma^2` becomes
    :math:`\sigma^2 + \frac{1 - p}{p} (\mu^2 + \sigma^2)`. Under Adam the mean update
    shrinks by :math:`\sqrt p` and its variance does not fall. On float16 parameters
    Adam's ``eps`` of 1e-8 is 0, and an entry dropped from the first step on comes to
    0 / 0: give it ``eps=1e-4``, or keep parameters in float32.

    Inside ``jax.shard_map`` a leaf is a block, and the index counts within it, so all
    shards would draw alike. With ``axis_name`` each shard draws anew, as a function of
    its number along these axes: independent, and the same in every run on as many
    shards, but not the mask of the whole leaf, which only ``jax.jit`` of whole arrays
    gives. What ``init`` makes is the same on all shards.

    Members of an ensemble, mapped over by ``jax.vmap``, draw alike as well, unless
    ``init`` is mapped over keys (below), or ``axis_name`` is that of ``jax.vmap``.

    Guarantees:
      - Structure, shapes and dtypes are kept; float16 and bfloat16 are rescaled
        in float32. Dropped entries are exactly zero, also where the gradient is NaN.
      - ``keep_rate=1.0`` returns the updates bit for bit (a schedule that reaches 1
        multiplies by 1, which may flush subnormal numbers to zero).
      - With ``rescale`` the expected update equals the incoming one, but for the
        rounding of :math:`p` that :func:`dropout_mask` names.
      - Gaussian noise is finite: :math:`n_i - 1` is a quantile of the normal law at
        one of :math:`2^{32}` evenly spread levels, between 2.9e-10 and 6.338 standard
        deviations from 0 on either side, to 5e-7 of itself before 1 is added.
      - The mask is a pure function of (key, step, leaf path, entry index): the same
        under ``jit``, in a ``scan``, on any sharding and device count, after a
        restore, and when other leaves come or go. :func:`dropout_mask` gives it.
      - ``jax.export`` takes symbolic shapes, and draws as for the shapes themselves; a
        leaf past :math:`2^{32}` entries needs a constraint that says so.
      - XLA fuses the hash into the optimizer's own pass: no mask array, and under SPMD
        no communication. (Gaussian noise costs a logarithm and a division an entry,
        so XLA stores it where it is read twice, as Adam does; on other shards it may
        round in another way.)
      - Derivatives through the update treat the noise as a constant.

    Args:
      keep_rate: probability :math:`p` in ``(0, 1]``, or a schedule of the step,
        which is 0 at the first update. Where a schedule gives 0 or less, nothing
        passes (Gaussian noise is infinite at 0, and NaN below); above 1 updates become
        NaN.
      key: int in ``[0, 2**64)``, an array of one, typed PRNG key, or legacy uint32 key;
        it may be traced. Give every dropout of a chain its own. Under
        ``optax.inject_hyperparams`` list ``key`` in ``static_args``, and with narrow
        parameters give ``hyperparam_dtype=jnp.float32``: the rate would be rounded to
        their dtype.
      rescale: multiply survivors by 1 / ``keep_rate``; Gaussian noise has mean 1
        anyhow.
      granularity: ``"element"``; ``"row"``, one draw per index of axis 0 (a scalar
        is one row); or ``"leaf"``, one draw per leaf.
      distribution: ``"bernoulli"`` or ``"gaussian"``.
      axis_name: mapped axes, one name or several in order, whose shards draw anew.
        Name those that divide the leaves: along others the leaf is the same on all
        shards, and would be no longer.

    Returns:
      A transformation whose state is a :class:`DropoutState`.

    Raises:
      ValueError: ``keep_rate``, ``key``, ``granularity`` or ``distribution`` is out
        of range; ``rescale=False`` with Gaussian noise; from ``init``, two leaves of
        one path, or a leaf with more than :math:`2^{32}` entries on one axis; from
        ``update``, ``axis_name`` is not mapped over.
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> tx = ot.gradient_dropout(0.25, key=0)
      >>> grads = jnp.ones(1000)
      >>> kept, state = tx.update(grads, tx.init(grads))
      >>> sorted(set(kept.tolist()))
      [0.0, 4.0]
      >>> member = lambda key: ot.gradient_dropout(0.25, key=key).init(grads)
      >>> states = jax.vmap(member)(jax.random.split(jax.random.key(0), 5))
      >>> kept, states = jax.vmap(tx.update, (None, 0))(grads, states)
      >>> len({str(mask) for mask in kept.tolist()})  # five masks
      5
      >>> opt = optax.chain(
      ...     optax.clip_by_global_norm(1.0), ot.gradient_dropout(0.3, key=0),
      ...     optax.adamw(1e-4))

    References:
      Xu et al., 2021, `Raise a Child in Large Language Model
      <https://arxiv.org/abs/2109.05687>`_, the task-free variant (code:
      alibaba/AliceMind, ``ChildTuningF.py``). Tseng et al., 2020, `Regularizing
      Meta-Learning via Gradient Dropout <https://arxiv.org/abs/2004.05859>`_ (code:
      hytseng0509/DropGrad; its drop rate is :math:`1 - p`).
    """
    return _dropout(keep_rate, key, rescale, granularity, distribution, axis_name)


def update_dropout(
    keep_rate: optax.ScalarOrSchedule,
    *,
    key: Any,
    rescale: bool = True,
    granularity: Granularity = "element",
    distribution: Distribution = "bernoulli",
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Drops a fresh random part of every update (increment dropout, SkipUpdate).

    .. math::
        \Delta\theta_i \leftarrow M_i \, \Delta\theta_i / p, \qquad
        M_i \sim \mathrm{Bernoulli}(p).

    The same kernel as :func:`gradient_dropout`, to be placed last in the chain: the
    moments see every gradient in full, and only a fraction :math:`p` of the entries
    moves, decoupled weight decay included. With ``granularity="leaf"`` whole
    parameter blocks skip the step, which is SkipUpdate.

    Guarantees, state and limits of the arguments are those of :func:`gradient_dropout`.

    Args:
      keep_rate: probability :math:`p` in ``(0, 1]``, or a schedule of the step; see
        :func:`gradient_dropout` for its limits.
      key: int, an array of one, typed PRNG key, or legacy uint32 key. Give every
        dropout of a chain its own.
      rescale: multiply survivors by 1 / ``keep_rate``.
      granularity: ``"element"``, ``"row"`` or ``"leaf"``.
      distribution: ``"bernoulli"`` or ``"gaussian"``.
      axis_name: mapped axes whose shards draw anew.

    Returns:
      A transformation whose state is a :class:`DropoutState`.

    Raises:
      ValueError, TypeError: as :func:`gradient_dropout`.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = jnp.ones(1000)
      >>> tx = optax.chain(optax.sgd(0.5), ot.update_dropout(0.5, key=0))
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> sorted(set(optax.apply_updates(params, updates).tolist()))
      [0.0, 1.0]

    References:
      Su, 2021, "Raise a Child: a new tuning idea, random masks on gradients and
      increments", kexue.fm archive 8764. Magma and SkipUpdate,
      `arXiv 2602.15322 <https://arxiv.org/abs/2602.15322>`_.
    """
    return _dropout(keep_rate, key, rescale, granularity, distribution, axis_name)


def _dropout(
    keep_rate: optax.ScalarOrSchedule,
    key: Any,
    rescale: bool,
    granularity: Granularity,
    distribution: Distribution,
    axis_name: AxisName | None,
) -> optax.GradientTransformationExtraArgs:
    checks.fraction(keep_rate=keep_rate)
    checks.flag(rescale=rescale)
    checks.chosen(GRANULARITIES, granularity=granularity)
    checks.chosen(NOISE, distribution=distribution)
    if distribution == "gaussian" and not rescale:
        raise ValueError("rescale=False needs distribution='bernoulli'.")
    key_words(key)  # a bad key fails here rather than in init
    axes = axis_names(axis_name)
    noise, strength = NOISE[distribution]

    def init(params: optax.Params) -> DropoutState:
        checks.inexact_leaves(params, by="dropout")
        leaves = leaves_with_paths(params)
        for _, leaf in leaves:
            index_axes(jnp.shape(leaf), granularity)
        words = leaf_words(key, sorted(path for path, _ in leaves))
        return DropoutState(
            # An array a leaf: of one table each leaf would read another row, which is a
            # kernel to compile for each, and on GPUs one kernel of them all.
            # optax.tree.map_params maps over the state of a tree without leaves as a
            # prefix of every other state: one leaf stands for all the words.
            words=words if leaves else jnp.zeros(2, jnp.uint32),
            step=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: optax.Updates,
        state: DropoutState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, DropoutState]:
        del params, extra_args
        update_checks.state_of(DropoutState, state, by="dropout")
        checks.inexact_leaves(updates, by="dropout")
        step = jnp.asarray(optax.safe_increment(state.step))
        after = DropoutState(words=state.words, step=step)
        if isinstance(keep_rate, int | float) and keep_rate == 1:
            return updates, after
        rate = jnp.asarray(at_step(state.step, keep_rate=keep_rate), float)
        scale = strength(rate) if rescale else jnp.sign(rate)
        # A traced rate cannot raise; out of range it must not pass for a good one.
        scale = jnp.where((rate >= 0) & (rate <= 1), scale, jnp.nan)
        last, now = last_kept_word(rate), shard_words(step_words(state.step), axes)
        leaves, layout = jax.tree.flatten(updates)
        known = state.words if isinstance(state.words, tuple) else ()
        checks.same_count(leaves, known, by="dropout")
        words = dict(zip(path_order(updates), known, strict=True))
        pairs = read_by_few(now, leaves)
        out = [
            noise(leaf, words[i], pairs[i], last, scale, granularity)
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(layout, out), after

    return transformation(init, update)
