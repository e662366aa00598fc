"""A schedule for the decay of a moving average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks


def cosine_ema_decay(base: Any, total_steps: int) -> Callable[[Any], jax.Array]:
    r"""BYOL's schedule of the target's decay: from a base to 1 on half a cosine.

    .. math::
        d_k = 1 - (1 - d_0)\, \tfrac12 \bigl(1 + \cos(\pi k / K)\bigr),
        \qquad k = \min(\text{step}, K).

    Published bases are 0.996 for the longest trainings, 0.99 and 0.97 for shorter
    ones. From step :math:`K` on the average rests.

    Args:
      base: :math:`d_0` in ``[0, 1]``, the decay at the first update.
      total_steps: :math:`K`, at least 1.

    Returns:
      A schedule for :func:`ema_params`: step, from 0, -> float32 scalar.

    Raises:
      ValueError: an argument out of range.
      TypeError: an argument of the wrong kind.

    Examples:
      >>> import optaxtricks as ot
      >>> decay = ot.cosine_ema_decay(0.996, 100)
      >>> [round(float(decay(step)), 4) for step in (0, 50, 100, 200)]
      [0.996, 0.998, 1.0, 1.0]

    References:
      Grill et al., 2020, `Bootstrap Your Own Latent
      <https://arxiv.org/abs/2006.07733>`_ (code: google-deepmind/deepmind-research,
      ``byol/utils/schedules.py``).
    """
    checks.unit_interval(schedule=False, base=base)
    checks.positive_int(total_steps=total_steps)

    def schedule(step: Any) -> jax.Array:
        done = jnp.minimum(jnp.asarray(step), total_steps).astype(jnp.float32)
        angle = done * jnp.asarray(np.pi / total_steps, jnp.float32)
        share = jnp.asarray(1 - base, jnp.float32) * (1 + jnp.cos(angle)) / 2
        return 1 - share

    return schedule
