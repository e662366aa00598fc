"""The parameters with their moving average in their place, to evaluate or to export."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._core.paths import flatten, leaves_with_paths, listing
from ..transforms.ema_params import EmaParamsState


def averaged_params(params: Any, opt_state: optax.OptState) -> Any:
    """Puts the averages of :func:`ema_params` in the place of the parameters.

    For evaluation and export; training goes on with the parameters that were given:

    .. code-block:: python

        @jax.jit
        def evaluate(train, batch):  # a Linen TrainState
            params = ot.averaged_params(train.params, train.opt_state)
            return train.apply_fn({"params": params}, batch)

    :func:`optaxtricks.nn.averaged` does it to an NNX model, and back.

    Guarantees:
      - A leaf that is averaged gets its average, rounded to the parameter's own dtype;
        one that is not, as in :func:`ladder`, ``optax.masked``, a part of
        ``optax.partition``, or one that ``wrt`` leaves out, stays.
      - Leaves are matched by path, and come back in the containers of ``params``.
      - Every array is a copy: what becomes of the buffers of ``params`` and
        ``opt_state``, by donation for instance, does not reach it. (Under ``jax.jit``
        nothing is copied that need not be.)

    Args:
      params: the parameters, or part of them: all that are averaged.
      opt_state: the state of an optimizer with :func:`ema_params` in it, however deep:
        in ``optax.chain``, ``optax.partition``, ``optax.MultiSteps``, an
        ``nnx.Optimizer``.

    Returns:
      A tree laid out like ``params``.

    Raises:
      ValueError: no average in the state, two of one leaf, an average of a leaf that
        ``params`` does not have, or of another shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = {"w": jnp.array([4.0])}
      >>> tx = optax.chain(optax.sgd(1.0), ot.ema_params(0.5))
      >>> updates, state = tx.update({"w": jnp.array([2.0])}, tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> params["w"].tolist(), ot.averaged_params(params, state)["w"].tolist()
      ([2.0], [3.0])
    """
    averages = _averages(opt_state)
    named, layout = leaves_with_paths(params), flatten(params)[1]
    if unknown := averages.keys() - {path for path, _ in named}:
        raise ValueError(
            f"opt_state has averages of leaves that params does not have: "
            f"{listing(sorted(unknown))}."
        )
    out = [_copied(path, leaf, averages.get(path, leaf)) for path, leaf in named]
    return jax.tree.unflatten(layout, out)


def _averages(opt_state: Any) -> dict[str, Any]:
    """All averaged leaves of a state, by path."""
    is_average = lambda node: isinstance(node, EmaParamsState)
    nodes = jax.tree.leaves(opt_state, is_leaf=is_average)
    states = [node for node in nodes if is_average(node)]
    if not states:
        raise ValueError(
            "opt_state has no average: ema_params is not in its optimizer."
        )
    found = [pair for state in states for pair in leaves_with_paths(state.ema)]
    averages = dict(found)
    if len(averages) < len(found):
        paths = [path for path, _ in found]
        twice = sorted({path for path in paths if paths.count(path) > 1})
        raise ValueError(
            f"opt_state has two averages of {listing(twice)}: choose one by "
            "optax.tree.get with a filtering function."
        )
    return averages


def _copied(path: str, leaf: Any, new: Any) -> Any:
    """An array of the dtype of `leaf` in a buffer of its own."""
    if not isinstance(leaf, jax.Array) and not hasattr(leaf, "dtype"):
        return leaf  # no array, as a function in a model's tree
    if jnp.shape(new) != jnp.shape(leaf):
        raise ValueError(
            f"the average of {path!r} has shape {jnp.shape(new)}, and the parameter "
            f"{jnp.shape(leaf)}."
        )
    return jnp.array(new, dtype=jnp.result_type(leaf), copy=True)
