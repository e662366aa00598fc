"""An NNX model that computes with the averages of its parameters, for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from .._core import averages


@contextlib.contextmanager
def averaged(model: Any, optimizer: nnx.Optimizer) -> Iterator[None]:
    """Puts the averages of :func:`ema_params` into a model until the block ends.

    Then the trained values come back, whatever happened: the very arrays, where the
    block was left by an exception too. What else the model changes inside, such as
    batch statistics, stays. A block inside a block changes nothing more.

    Guarantees:
      - Values keep their dtypes, and values without an average stay as they are.
      - No Variable holds a buffer of the optimizer's state.
      - It works in ``nnx.jit``, around the whole block.

    Args:
      model: the module that the optimizer trains.
      optimizer: its ``nnx.Optimizer``, with whatever ``wrt``, whose transformation has
        :func:`ema_params` in it.

    Returns:
      A context manager.

    Raises:
      ValueError: no average, or two of one leaf; and where the optimizer took a step
        inside the block, which would be lost.
      TypeError: an argument of the wrong kind.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> from flax import nnx
      >>> model = nnx.Dict(w=nnx.Param(jnp.array([4.0])))
      >>> tx = optax.chain(optax.sgd(1.0), ot.ema_params(0.5))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> _ = optimizer.update(model, nnx.State({"w": nnx.Param(jnp.array([2.0]))}))
      >>> with ot.nn.averaged(model, optimizer):
      ...     print(model.w[...].tolist())
      [3.0]
      >>> model.w[...].tolist()
      [2.0]
    """
    if not isinstance(optimizer, nnx.Optimizer):
        raise TypeError(f"optimizer must be an nnx.Optimizer, got {optimizer!r}.")
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be an nnx.Module, got {model!r}.")
    leaves, layout = jax.tree.flatten(nnx.state(model, optimizer.wrt))
    now = lambda: jax.tree.unflatten(layout, leaves)
    step = optimizer.step[...]
    nnx.update(model, averages.averaged(now(), optimizer.opt_state, by="averaged"))
    try:
        yield
    finally:
        nnx.update(model, now())
    if _differ(step, optimizer.step[...]):
        raise ValueError(
            "the optimizer took a step inside of averaged, where the model holds "
            "averages: the step is lost. Train outside of the block."
        )


def _differ(before: Any, after: Any) -> bool:
    if isinstance(before, jax.core.Tracer) or isinstance(after, jax.core.Tracer):
        return before is not after
    return bool(before != after)
