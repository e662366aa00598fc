"""What Tiger does to a leaf whose gradient is not finite: shrink it a little."""

from typing import Any

import optax

from .._core import checks
from .._core.nonfinite import shrinking
from .._core.selectors import Selector


def shrink_nonfinite(
    inner: optax.GradientTransformation,
    *,
    shrink: Any = 0.99,
    to_one: Selector | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks leaves whose gradient is not finite, in place of ``inner``'s update.

    A leaf whose gradient holds NaN or infinity moves toward its centre :math:`c`:

    .. math::
        \theta \leftarrow c + s (\theta - c),

    whatever ``inner`` says; the others take ``inner``'s update. The thought is
    that weights which overflow are too large. ``inner`` sees a gradient of zeros there,
    so that norms over all leaves stay finite too. (``optax.apply_if_finite`` skips the
    step of all leaves instead, counts included, and lets the gradient through after a
    number of bad ones in a row.) On a CPU this takes a copy of a momentum that the
    update is read from; :func:`tiger`, which skips in its own pass, needs none.

    Guarantees:
      - Where all gradients are finite, updates and state are ``inner``'s.
      - What ``inner`` holds for such a leaf stays as it is, bit for bit, so far as
        ``optax.tree.map_params`` finds it; step counts go on. Sums of
        ``optax.MultiSteps`` pass over that call, and are lost if it ends the window.
      - No communication on any sharding but a scalar a leaf.

    Args:
      inner: a complete optimizer, learning rate included.
      shrink: :math:`s` in ``(0, 1)``.
      to_one: a selector (see :func:`select`) of leaves with centre 1, such as the
        scales of normalisation layers; all others have centre 0.

    Returns:
      A transformation whose state is that of ``inner``. Its ``update`` needs
      ``params``.

    Raises:
      ValueError: ``shrink`` is out of range; from ``init``, ``to_one`` matches no leaf;
        from ``update``, ``params`` is missing or laid out otherwise.
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> tx = ot.shrink_nonfinite(optax.sgd(1.0), shrink=0.5)
      >>> params = {"a": jnp.array([2.0, 4.0]), "b": jnp.array([8.0])}
      >>> grads = {"a": jnp.array([jnp.nan, 0.0]), "b": jnp.array([1.0])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> updates["a"].tolist(), updates["b"].tolist()
      ([-1.0, -2.0], [-1.0])

    References:
      Su, 2023, "Tiger: a tight-fisted optimizer", kexue.fm archive 9512 (code:
      bojone/tiger, ``shrink_ratio``).
    """
    checks.optimizer(inner=inner)
    return shrinking(inner, shrink, {"to_one": to_one}, by="shrink_nonfinite")
