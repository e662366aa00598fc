"""The numbers that monitors and injected hyperparameters hold, for any logger."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._core.readings import array, by_name
from .._core.state_parts import nodes_of
from ..transforms.monitor_groups import MonitorGroupsState

_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


def metrics(opt_state: optax.OptState) -> dict[str, jax.Array]:
    """Reads every monitor in an optimizer state, and its injected hyperparameters.

    It finds the states of :func:`monitor_groups` wherever they are: in ``optax.chain``,
    ``optax.partition``, ``optax.MultiSteps``, ``optax.inject_hyperparams``, in the
    state of an ``nnx.Optimizer``. It works inside ``jax.jit``, where a step can return
    it beside the loss, and outside; it does not wait for the device. Of a batch of
    states call it inside ``jax.vmap``: outside, members would be taken for layers.

    Args:
      opt_state: the state of any Optax optimizer.

    Returns:
      Scalars by name, such as ``"updates/emb/rms"`` (name of the monitor, label,
      reading), for stacks ``"updates/blocks/3/rms"`` of each layer, and
      ``"hyperparams/learning_rate"``. Inside ``optax.partition`` the
      label of the part comes between, as in ``"hyperparams/fast/learning_rate"``; a
      name that comes again gets a number, ``"hyperparams/learning_rate#2"``. Empty if
      there is nothing to read.

    Raises:
      ValueError: two monitors have the same name and share a label, or one has a label
        such as ``"blocks/3"`` for what another reads as a layer.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> watch = lambda name: ot.monitor_groups("all", name=name)
      >>> tx = optax.chain(watch("grads"), optax.scale(-0.5), watch("updates"))
      >>> _, state = tx.update(jnp.ones(4), tx.init(jnp.ones(4)))
      >>> found = ot.metrics(state)
      >>> float(found["grads/all/rms"]), float(found["updates/all/rms"])
      (1.0, 0.5)
    """
    monitors = [state.readings for _, state in nodes_of(opt_state, MonitorGroupsState)]
    # A monitor of no leaf has no dict.
    found = by_name(held for held in monitors if isinstance(held, dict))
    return found | _hyperparams(opt_state, ())


def _hyperparams(tree: Any, above: tuple[str, ...]) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = {}
    for keys, state in nodes_of(tree, _INJECTED):
        # Keys of a dict in a state are the labels of optax.partition.
        labels = [str(k.key) for k in keys if isinstance(k, jax.tree_util.DictKey)]
        parts = (*above, *labels)
        own = {
            "/".join(("hyperparams", *parts, name)): array(value)
            for name, value in state.hyperparams.items()
        }
        inner = _hyperparams(state.inner_state, parts)
        for name, value in (*own.items(), *inner.items()):
            if jnp.ndim(value) == 0:
                found[_fresh(name, found)] = value
    return found


def _fresh(name: str, taken: dict[str, Any]) -> str:
    count, fresh = 1, name
    while fresh in taken:
        count += 1
        fresh = f"{name}#{count}"
    return fresh
