"""Parameters of few bits that take small steps on average."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.counter_hash import (
    entry_words,
    index_axes,
    key_words,
    leaf_words,
    step_words,
)
from .._core.grouping import read_by_few
from .._core.paths import leaves_with_paths, path_order
from .._core.rounding import is_narrow, rounded_step
from .._core.serialized import serialized_state


@serialized_state
class RoundStochasticallyState(NamedTuple):
    """State of :func:`round_stochastically`.

    Attributes:
      words: for each bfloat16 or float16 leaf, in the order of paths as strings, two
        uint32 words drawn from key and path; where there is none, a placeholder of the
        same shape.
      step: int32 scalar, the number of earlier updates.
    """

    words: tuple[jax.Array, ...] | jax.Array
    step: jax.Array


def round_stochastically(*, key: Any) -> optax.GradientTransformationExtraArgs:
    r"""Rounds bfloat16 and float16 parameters up or down at random, right on average.

    The neighbours of a bfloat16 number :math:`\theta` are :math:`2^{-8} |\theta|` away
    or farther. ``optax.apply_updates`` rounds to the nearest: a step of less than half
    that distance is lost, every time anew. Here the sum lands on one of its own two
    neighbours :math:`a \le \theta + u \le b`, on

    .. math::
        b \text{ with probability } \frac{\theta + u - a}{b - a}, \quad
        \text{else on } a, \qquad
        \text{so that } \mathbb{E}[\theta_{\text{new}}] = \theta + u.

    Small steps then are taken as often as their size demands, without a float32 copy
    of the parameters. The price is noise: of a variance of at most
    :math:`\tfrac14 (b - a)^2` an entry and step.

    It stands **last** in a chain (:func:`ema_params` and :func:`monitor_groups` may
    follow, which change nothing). What it emits for a narrow leaf is a **float32**
    update, made so that an unmodified ``optax.apply_updates``, as ``TrainState`` and
    ``nnx.Optimizer`` call it, lands on the chosen neighbour; this is the one
    transformation whose updates do not keep their dtype. So what wants one dtype of
    what goes in and comes out, as ``optax.apply_if_finite`` and
    ``optax.conditionally_transform`` do, goes before it and not around it; and under
    JAX's strict dtype promotion ``optax.apply_updates`` refuses to add the two. A
    :class:`RowSparse` is rounded inside :func:`lazy_rows`.

    Give it updates as exact as you have them: those in bfloat16 have been rounded to
    nearest already, which costs up to :math:`2^{-9}` of each. That is no small step
    lost, but all of a small weight decay beside a sign: widen the gradients first, by
    ``optax.stateless(lambda g, _: optax.tree.cast(g, jnp.float32))``.

    Guarantees:
      - ``optax.apply_updates(params, updates)`` keeps the parameters' dtype, and each
        entry of bfloat16 or float16 becomes a neighbour of the exact sum. Where the
        update takes a parameter to less than :math:`2^{-16}` of itself (float16:
        :math:`2^{-13}`), the neighbours are those among the multiples of
        :math:`2^{-23} |\theta|`, and next to zero, below :math:`2^{-95}`, among those
        of :math:`2^{-102}`.
      - Its mean is the exact sum, to :math:`2^{-32}` of the distance of the
        neighbours.
      - A sum that is one of these numbers itself is met exactly; an update of zero
        changes nothing.
      - Infinity and NaN come out as without it; so does a sum that nearest rounding
        takes to the largest finite number of the dtype, or beyond.
      - Updates of other leaves pass bit for bit.
      - The choice is a pure function of (key, step, leaf path, entry index), and a
        neighbour is the same wherever it is worked out: the same under ``jit``, on any
        sharding and device count, and after a restore.
      - ``jax.export`` takes symbolic shapes, and rounds as for the shapes themselves; a
        leaf past :math:`2^{32}` entries needs a constraint that says so.
      - In a compiled step it is fused into the pass that adds the update: no array of
        random numbers, no float32 array in memory, no communication on any sharding.
      - Derivatives through the update take the rounding for a constant.

    Args:
      key: int in ``[0, 2**64)``, typed PRNG key, or legacy uint32 key; not that of a
        dropout in the same chain. Under ``optax.inject_hyperparams`` list ``key`` in
        ``static_args``.

    Returns:
      A transformation whose state is a :class:`RoundStochasticallyState`. Its
      ``update`` needs ``params``.

    Raises:
      ValueError: ``key`` is out of range; from ``init``, two leaves of one path, or a
        leaf with more than :math:`2^{32}` entries on one axis; from ``update``,
        ``params`` is missing or has other leaves or shapes.
      TypeError: ``key`` is no key; from ``init``, an integer leaf.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = jnp.ones(1000, jnp.bfloat16)  # 1 - 1/256 is the next number below
      >>> tx = optax.chain(optax.sgd(1 / 1024), ot.round_stochastically(key=0))
      >>> updates, _ = tx.update(jnp.ones_like(params), tx.init(params), params)
      >>> with jax.numpy_dtype_promotion("standard"):  # JAX's own default
      ...     new = optax.apply_updates(params, updates)
      >>> sorted(set(new.tolist())), new.dtype.name
      ([0.99609375, 1.0], 'bfloat16')
      >>> bool(0.2 < (new < 1).mean() < 0.3)  # a quarter of them
      True

    References:
      Zamirai et al., 2020, `Revisiting BFloat16 Training
      <https://arxiv.org/abs/2010.06192>`_, which rounds stochastically where weights
      are updated. Knuth, The Art of Computer Programming, volume 2, section 4.2.2, for
      the exact sum.
    """
    key_words(key)  # a bad key fails here rather than in init

    def init(params: optax.Params) -> RoundStochasticallyState:
        checks.inexact_leaves(params, by="round_stochastically")
        paths = []
        for path, leaf in leaves_with_paths(params):
            if is_narrow(jnp.result_type(leaf)):
                index_axes(jnp.shape(leaf), "element")
                paths.append(path)
        return RoundStochasticallyState(
            # optax.tree.map_params takes the state of a tree without leaves as a
            # prefix of every other state: one leaf stands for all the words.
            words=leaf_words(key, sorted(paths)) if paths else jnp.zeros(2, jnp.uint32),
            step=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: optax.Updates,
        state: RoundStochasticallyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, RoundStochasticallyState]:
        del extra_args
        by = "round_stochastically"
        update_checks.state_of(RoundStochasticallyState, state, by=by)
        checks.inexact_leaves(updates, by=by)
        params = update_checks.given(params, updates, by=by)
        out, layout = jax.tree.flatten(updates)
        held, now = jax.tree.leaves(params), step_words(state.step)
        narrow = [i for i in path_order(updates) if is_narrow(jnp.result_type(held[i]))]
        known = state.words if isinstance(state.words, tuple) else ()
        if len(known) != len(narrow):
            raise ValueError(
                f"round_stochastically was initialised for {len(known)} leaves of "
                f"bfloat16 and float16 but got params with {len(narrow)}."
            )
        pairs = read_by_few(now, [held[i] for i in narrow])
        for i, words, pair in zip(narrow, known, pairs, strict=True):
            out[i] = _rounded(jnp.asarray(held[i]), jnp.asarray(out[i]), words, pair)
        step = jnp.asarray(optax.safe_increment(state.step))
        after = RoundStochasticallyState(words=state.words, step=step)
        return jax.tree.unflatten(layout, out), after

    return transformation(init, update)


# Jitted, so that leaves of one shape share one trace, and eager steps round like
# compiled ones.
@jax.jit
def _rounded(
    param: jax.Array, update: jax.Array, words: jax.Array, now: tuple[jax.Array, ...]
) -> jax.Array:
    return rounded_step(param, update, entry_words(param, words, "element", now))
