"""Two learning rates in one optimizer: a predictor at its own, fixed one."""

from collections.abc import Hashable
from typing import Any

import jax
import optax

from .._core import checks, update_checks
from .._core.paths import flatten
from .._core.rates import scale_by_rate
from .._core.selectors import Selector, proper_matches


def two_timescale(
    inner: optax.GradientTransformation,
    learning_rate: optax.ScalarOrSchedule,
    *,
    fast: Selector,
    fast_learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """Gives some leaves a learning rate of their own, such as SimSiam's predictor.

    The chain is, in order: ``inner``, and ``optax.partition`` of
    ``optax.scale_by_learning_rate`` with ``fast_learning_rate`` on the leaves of
    ``fast`` and with ``learning_rate`` on the rest, in float32 or wider. ``inner`` sees
    the whole tree and keeps one state for it; momentum is not touched by the rates.

    SimSiam keeps the predictor at the initial rate while the encoder's goes down by a
    cosine: the predictor has to follow the encoder, and the slower that moves the
    better it does. SGD with coupled decay, as published, is ``inner =
    optax.chain(optax.add_decayed_weights(1e-4), optax.trace(0.9))``. For a constant
    ratio of the two rates :func:`scale_by_path` is enough.

    Args:
      inner: an optimizer without a learning rate: ``optax.scale_by_adam()``, not
        ``optax.adam(1e-3)``.
      learning_rate: a number, or a schedule of the step.
      fast: a selector (see :func:`select`) of the leaves on the fast time scale. List
        it in ``static_args`` under ``optax.inject_hyperparams``, which would take a
        predicate for a schedule.
      fast_learning_rate: their rate; a number, or a schedule of the step.

    Returns:
      A transformation. Unknown arguments of ``update`` reach ``inner``.

    Raises:
      ValueError: a rate that is negative or not finite; from ``init``, ``fast`` matches
        no leaf, or every leaf; both list the paths.
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> grads = {"encoder": jnp.ones(2), "predictor": jnp.ones(1)}
      >>> rate = lambda step: jnp.where(step < 1, 0.5, 0.25)
      >>> tx = ot.two_timescale(
      ...     optax.identity(), rate, fast="^predictor", fast_learning_rate=1.0
      ... )
      >>> state = tx.init(grads)
      >>> for _ in range(2):
      ...     updates, state = tx.update(grads, state)
      ...     {name: update.tolist() for name, update in updates.items()}
      {'encoder': [-0.5, -0.5], 'predictor': [-1.0]}
      {'encoder': [-0.25, -0.25], 'predictor': [-1.0]}

    References:
      Chen and He, 2021, `Exploring Simple Siamese Representation Learning
      <https://arxiv.org/abs/2011.10566>`_ (code: facebookresearch/simsiam,
      ``--fix-pred-lr``). Su, 2020, "A qualitative analysis of BYOL and SimSiam by fast
      and slow dynamics", kexue.fm archive 7980.
    """
    checks.optimizer(inner=inner)
    checks.rate(learning_rate=learning_rate, fast_learning_rate=fast_learning_rate)
    rates: dict[Hashable, optax.GradientTransformation] = {
        "fast": scale_by_rate(fast_learning_rate),
        "slow": scale_by_rate(learning_rate),
    }

    def labels(tree: Any) -> Any:
        checks.inexact_leaves(tree, by="two_timescale")
        chosen = proper_matches(tree, fast, name="fast")
        names = ["fast" if is_fast else "slow" for is_fast in chosen]
        return jax.tree.unflatten(flatten(tree)[1], names)

    parts = optax.partition(rates, labels)
    parts = update_checks.beside_updates(parts, by="two_timescale")
    return optax.chain(inner, parts)
