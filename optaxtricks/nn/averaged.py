"""An NNX model that holds the moving average of its parameters for a while."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from flax import nnx

from ..inspection.averaged_params import averaged_params


@contextlib.contextmanager
def averaged(model: Any, optimizer: nnx.Optimizer) -> Iterator[None]:
    """Puts the averages of :func:`ema_params` into an NNX model, and takes them out.

    .. code-block:: python

        with ot.nn.averaged(model, optimizer):
            score = evaluate(model)

    Guarantees:
      - Inside, the parameters that ``optimizer`` averages hold their averages, each in
        its own dtype: :func:`averaged_params` of what ``wrt`` chooses. All else, batch
        statistics for instance, stays as it is, and what changes of it goes on.
      - On leaving, by an error too, they hold what they held before, bit for bit and in
        the same buffers. What became of them inside is lost: do not train there. One
        ``with`` inside another is harmless.
      - A call of :func:`jax.jit` inside may donate the model: the averages are copies.

    Args:
      model: an NNX module.
      optimizer: its ``nnx.Optimizer``, with :func:`ema_params` in its chain.

    Returns:
      A context manager that yields nothing.

    Raises:
      ValueError: as :func:`averaged_params`.
      TypeError: ``optimizer`` is none.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> from flax import nnx
      >>> model = nnx.Dict(w=nnx.Param(jnp.array([4.0])))
      >>> tx = optax.chain(optax.sgd(1.0), ot.ema_params(0.5))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> _ = optimizer.update(model, nnx.grad(lambda m: 2 * m.w.sum())(model))
      >>> with ot.nn.averaged(model, optimizer):
      ...     model.w[...].tolist()
      [3.0]
      >>> model.w[...].tolist()
      [2.0]
    """
    if not isinstance(optimizer, nnx.Optimizer):
        raise TypeError(f"optimizer must be an nnx.Optimizer, got {optimizer!r}.")
    params = nnx.state(model, optimizer.wrt)
    held, layout = jax.tree.flatten(params)
    nnx.update(model, averaged_params(params, optimizer.opt_state))
    try:
        yield
    finally:
        nnx.update(model, jax.tree.unflatten(layout, held))
