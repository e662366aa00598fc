"""The side network of an NNX model, for its optimizer and its gradient."""

import dataclasses
from typing import Any

from flax import nnx

from .._core.paths import leaves_with_paths
from .._core.selectors import Selector, proper_matches


def side_filter(model: Any, side: Selector) -> nnx.All:
    """An NNX filter of the parameters of a side network.

    It says which parameters are trained in the two places of NNX that ask: ``wrt`` of
    ``nnx.Optimizer`` and ``nnx.DiffState``. No more is needed, as neither gradients nor
    optimizer ever see the frozen parameters (:func:`ladder` is for other loops):

    .. code-block:: python

        only = ot.nn.side_filter(model, "side")
        optimizer = nnx.Optimizer(model, optax.adamw(1e-3), wrt=only)

        @nnx.jit
        def step(model, optimizer, batch):
            differ = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, only))
            loss, grads = differ(model, batch)
            optimizer.update(model, grads)
            return loss

    Guarantees:
      - The filter is true for the ``nnx.Param`` that the selector matches in ``model``,
        and for nothing else: no batch statistics, no random state.
      - Filters of the same parameters are equal and have the same hash, so that they
        may be static arguments.

    Args:
      model: an NNX module. The filter is for it and for modules of the same layout.
      side: a selector (see :func:`select`) of the parameters to train; a path is as in
        ``nnx.state(model, nnx.Param)``.

    Returns:
      A filter.

    Raises:
      ValueError: ``side`` matches no parameter or every one; the message lists them.
      TypeError: ``side`` is no selector.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> from flax import nnx
      >>> model = nnx.Dict(body=nnx.Param(jnp.ones(3)), side=nnx.Param(jnp.ones(2)))
      >>> only = ot.nn.side_filter(model, "^side")
      >>> loss_fn = lambda model: (model.body.sum() * model.side).sum()
      >>> grads = nnx.grad(loss_fn, argnums=nnx.DiffState(0, only))(model)
      >>> jax.tree.map(lambda x: x.tolist(), nnx.to_pure_dict(grads))
      {'side': [3.0, 3.0]}
    """
    params = nnx.state(model, nnx.Param)
    chosen = proper_matches(params, side, name="side")
    named = zip(leaves_with_paths(params), chosen, strict=True)
    return nnx.All(nnx.Param, _Among(frozenset(path for (path, _), c in named if c)))


@dataclasses.dataclass(frozen=True)
class _Among:
    """A filter by path, as `leaves_with_paths` spells it."""

    paths: frozenset[str]

    def __call__(self, path: tuple[Any, ...], value: Any) -> bool:
        return "/".join(map(str, path)) in self.paths
