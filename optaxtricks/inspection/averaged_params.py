"""The averages of an optimizer state, to evaluate with."""

import optax

from .._core.averages import averaged


def averaged_params(params: optax.Params, opt_state: optax.OptState) -> optax.Params:
    """Puts the averages of :func:`ema_params` in the place of the parameters.

    It finds them wherever they are: in ``optax.chain``, ``optax.MultiSteps``,
    ``optax.inject_hyperparams``, in the state of an ``nnx.Optimizer``, and in the parts
    of ``optax.partition``, ``optax.masked`` and :func:`ladder`, which may each have
    one of their own leaves. Leaves are matched by path. For NNX models there is
    :func:`optaxtricks.nn.averaged`.

    Guarantees:
      - Containers and dtypes are those of ``params``; a leaf without an average comes
        back as it is.
      - No array is a buffer of ``params`` or of the state, so it outlives a donation
        of both, compiled or not.

    Args:
      params: the parameters that the optimizer trains, and others beside them.
      opt_state: the state of any Optax optimizer with :func:`ema_params` in it.

    Returns:
      The parameters to evaluate.

    Raises:
      ValueError: there is no average, or two of one leaf; one of a leaf that ``params``
        does not have, or has in another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = {"w": jnp.array([4.0], jnp.bfloat16), "frozen": jnp.array([1.0])}
      >>> average = optax.masked(ot.ema_params(0.5), {"w": True, "frozen": False})
      >>> tx = optax.chain(optax.sgd(1.0), average)
      >>> grads = {"w": jnp.array([2.0], jnp.bfloat16), "frozen": jnp.array([0.0])}
      >>> _, state = tx.update(grads, tx.init(params), params)
      >>> ot.averaged_params(params, state)
      {'frozen': Array([1.], dtype=float32), 'w': Array([3], dtype=bfloat16)}
    """
    return averaged(params, opt_state, by="averaged_params")
