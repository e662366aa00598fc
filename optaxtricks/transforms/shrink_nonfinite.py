"""What Tiger does to a leaf whose gradient is not finite: shrink it a little."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.finite import all_finite
from .._core.selectors import Selector, matches


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
    that weights which overflow are too large. ``inner`` still sees the gradient, and
    must look after its own state, as :func:`scale_by_tiger` does.

    Guarantees:
      - Where all gradients are finite, updates and state are ``inner``'s.
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
    checks.open_fraction(shrink=shrink)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        checks.inexact_leaves(params, by="shrink_nonfinite")
        _centres(params, to_one)
        return inner.init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        checks.inexact_leaves(updates, by="shrink_nonfinite")
        params = update_checks.given(params, updates, by="shrink_nonfinite")
        proposed, state = inner.update(updates, state, params, **extra_args)
        leaves, layout = jax.tree.flatten(proposed)
        out = [
            jnp.where(all_finite(g), u, _toward(p, centre, shrink, jnp.result_type(u)))
            for g, u, p, centre in zip(
                jax.tree.leaves(updates),
                leaves,
                jax.tree.leaves(params),
                _centres(params, to_one),
                strict=True,
            )
        ]
        return jax.tree.unflatten(layout, out), state

    return transformation(init, update)


def _centres(params: optax.Params, to_one: Selector | None) -> list[int]:
    if to_one is None:
        return [0] * len(jax.tree.leaves(params))
    return [int(one) for one in matches(params, to_one, name="to_one")]


def _toward(param: Any, centre: int, shrink: Any, dtype: Any) -> jax.Array:
    """The update that shrinks a leaf."""
    param = jnp.asarray(param)
    wide = np.promote_types(param.dtype, np.float32)
    offset = param.astype(wide) - jnp.asarray(centre, wide)
    return (jnp.asarray(shrink - 1, wide) * offset).astype(dtype)
