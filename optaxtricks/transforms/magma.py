"""Magma: updates of random leaves, damped where momentum and gradient disagree."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.alignment import Beside
from .._core.build import transformation
from .._core.counter_hash import (
    entry_words,
    key_words,
    last_kept_word,
    leaf_words,
    step_words,
)
from .._core.grouping import common, totals
from .._core.paths import leaves_with_paths, path_order
from .._core.scaling import scaled
from .._core.schedules import at_step
from .._core.serialized import serialized_state


@serialized_state
class MagmaState(NamedTuple):
    """State of :func:`magma`.

    Attributes:
      inner: the state of the wrapped optimizer.
      mu: the mean gradient, laid out like the parameters, in float32 or wider.
      scores: for each leaf, in the order of their paths as strings, its smoothed
        alignment, a float32 scalar.
      words: for each leaf, in that order, two uint32 words from key and path.
      step: int32 scalar, the number of earlier updates.
    """

    inner: optax.OptState
    mu: optax.Updates
    scores: tuple[jax.Array, ...] | jax.Array
    words: tuple[jax.Array, ...] | jax.Array
    step: jax.Array


def magma(
    inner: optax.GradientTransformation,
    *,
    key: Any,
    keep_rate: optax.ScalarOrSchedule = 0.5,
    temperature: Any = 2.0,
    b1: Any = 0.9,
    smoothing: Any = 0.9,
) -> optax.GradientTransformationExtraArgs:
    r"""Skips the updates of random leaves, and damps the rest by their alignment.

    With the gradient :math:`g` and :math:`\mathrm{inner}`'s update :math:`\Delta` of
    a leaf, each leaf being a block:

    .. math::
        \mu_t &= \beta_1 \mu_{t-1} + (1 - \beta_1) g_t, \qquad
        \tilde s_t = \sigma\bigl(\cos(\mu_t, g_t) / \tau\bigr), \\
        s_t &= \gamma s_{t-1} + (1 - \gamma) \tilde s_t, \qquad
        u_t = z_t s_t \Delta_t, \qquad z_t \sim \mathrm{Bernoulli}(p).

    ``inner`` sees every gradient. Updates are not divided by :math:`p` or
    :math:`s`: on the average a step is about a quarter of ``inner``'s. The paper
    masks the matrices of attention and MLP blocks alone; ``optax.partition`` gives
    other leaves another optimizer.

    Its paper reports lower perplexity than Adam and Muon in pre-training of up to a
    billion parameters. Others saw less: worse than NorMuon on modded-nanogpt, and a
    lead in a run of 100 billion tokens that was gone at its end (microsoft/dion, pull
    request 27). Compare before you rely on it; :func:`update_dropout` with
    ``granularity="leaf"`` is the plain mask, SkipUpdate.

    Sources leave :math:`s_0` open; here it is :math:`\sigma(0) = 1/2`, whose share
    after ten steps is a third. They take :math:`\mu` from the state of Adam; here it
    is kept apart, one more array of the parameters' size, so that ``inner`` may be
    any optimizer. For Adam with the same ``b1`` both are the same.

    Guarantees:
      - A leaf that is skipped gets exactly zero, also where its update is NaN.
      - Skips are a pure function of key, step and path; those of
        :func:`update_dropout` with the same key.
      - Updates keep structure, shapes and dtypes; sums are in float32 or wider, in
        which entries below 1e-19 or above 1e19 leave the range when squared: there
        nothing is known of the alignment, or its running mean is NaN for good.
      - On any sharding it adds three scalars a leaf to ``inner``'s communication: their
        sums, or on GPUs those of every device.

    Args:
      inner: a complete optimizer; extra arguments are forwarded to it.
      key: int in ``[0, 2**64)``, typed PRNG key, or legacy uint32 key.
      keep_rate: :math:`p` in ``(0, 1]``, or a schedule of the step. Where that gives 0
        or less all leaves are skipped; above 1 updates become NaN.
      temperature: :math:`\tau > 0`.
      b1: :math:`\beta_1` in ``(0, 1)``.
      smoothing: :math:`\gamma` in ``(0, 1)``.

    Returns:
      A transformation whose state is a :class:`MagmaState`.

    Raises:
      ValueError: an argument out of range; from ``init``, two leaves of one path.
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> tx = ot.magma(optax.sgd(1.0), key=0, keep_rate=1.0)
      >>> grads = jnp.array([3.0, -4.0])
      >>> updates, _ = tx.update(grads, tx.init(grads))  # cosine 1, s = 0.5122
      >>> [round(float(u), 3) for u in updates]
      [-1.537, 2.049]

    References:
      Joo et al., 2026, `On Surprising Effectiveness of Masking Updates in Adaptive
      Optimizers <https://arxiv.org/abs/2602.15322>`_, algorithm 1 (with
      :math:`p = 0.5, \tau = 2, \gamma = 0.9`).
    """
    checks.optimizer(inner=inner)
    checks.fraction(keep_rate=keep_rate)
    checks.positive(temperature=temperature)
    checks.open_fraction(b1=b1, smoothing=smoothing)
    key_words(key)  # a bad key fails here rather than in init
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> MagmaState:
        checks.inexact_leaves(params, by="magma")
        paths = sorted(path for path, _ in leaves_with_paths(params))
        wide = lambda x: np.promote_types(jnp.result_type(x), np.float32)
        half = lambda: jnp.full((), 0.5, jnp.float32)
        return MagmaState(
            inner=inner.init(params),
            mu=jax.tree.map(lambda x: jnp.zeros_like(x, wide(x)), params),
            # One leaf stands for all where optax.tree.map_params shows none.
            scores=tuple(half() for _ in paths) if paths else half(),
            words=leaf_words(key, paths) if paths else jnp.zeros(2, jnp.uint32),
            step=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: optax.Updates,
        state: MagmaState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MagmaState]:
        update_checks.state_of(MagmaState, state, by="magma")
        checks.inexact_leaves(updates, by="magma")
        momenta = Beside(state.mu, updates, by="magma")
        proposed, after = inner.update(updates, state.inner, params, **extra_args)
        grads = jax.tree.leaves(updates)
        leaves, layout = jax.tree.flatten(proposed)
        checks.same_count(leaves, grads, by="magma")
        rate = jnp.asarray(at_step(state.step, keep_rate=keep_rate), jnp.float32)
        # A traced rate cannot raise; out of range it must not pass for a good one.
        sound = jnp.where((rate >= 0) & (rate <= 1), jnp.sign(rate), jnp.nan)
        numbers = common(temperature, smoothing, sound)
        last, now = last_kept_word(rate), step_words(state.step)
        order = path_order(updates)
        held = (state.scores, state.words) if leaves else ((), ())
        held = {i: (s, w ^ now) for i, s, w in zip(order, *held, strict=True)}
        rows = enumerate(zip(leaves, grads, momenta.leaves, strict=True))
        out = [_leaf(*row, *held[i], last, b1, numbers) for i, row in rows]
        return jax.tree.unflatten(layout, [u for u, _, _ in out]), MagmaState(
            inner=after,
            mu=momenta.rebuilt([m for _, m, _ in out]),
            scores=tuple(out[i][2] for i in order) if leaves else state.scores,
            words=state.words,
            step=jnp.asarray(optax.safe_increment(state.step)),
        )

    return transformation(init, update)


# Jitted, so that leaves of one shape share one trace.
@jax.jit
def _leaf(
    update: jax.Array,
    grad: jax.Array,
    mu: jax.Array,
    score: jax.Array,
    seed: jax.Array,
    last: jax.Array,
    b1: Any,
    numbers: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    temperature, smoothing, sound = numbers
    decay = jnp.asarray(b1, jnp.float32).astype(mu.dtype)
    g = grad.astype(mu.dtype)
    mu = decay * mu + (1 - decay) * g
    pairs = (mu, mu), (g, g), (mu, g)
    of_mu, of_g, of_both = totals(*[(x * y.conj()).real for x, y in pairs])
    norms = jnp.sqrt(of_mu) * jnp.sqrt(of_g)
    cosine = of_both / jnp.where(norms > 0, norms, jnp.ones((), norms.dtype))
    aligned = jax.nn.sigmoid(cosine.astype(jnp.float32) / temperature)
    score = smoothing * score + (1 - smoothing) * aligned
    keep = entry_words(update, seed, "leaf") <= last
    damped = scaled(update, sound * score)
    return jnp.where(keep, damped, jnp.zeros((), update.dtype)), mu, score
