"""The numbers that monitors and injected hyperparameters hold, for any logger."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

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
    found: dict[str, jax.Array] = {}
    for _, state in nodes_of(opt_state, MonitorGroupsState):
        if not isinstance(state.readings, dict):
            continue  # a monitor of no leaf
        for name, groups in state.readings.items():
            for label, readings in groups.items():
                for full, value in _by_layer(f"{name}/{label}", readings):
                    if full in found:
                        raise ValueError(
                            f"two monitors report {full!r}; give each its own name."
                        )
                    found[full] = value
    return found | _hyperparams(opt_state, ())


def _by_layer(prefix: str, readings: dict[str, Any]) -> list[tuple[str, jax.Array]]:
    """The readings of a label with their names; a vector has one for each layer."""
    found: list[tuple[str, jax.Array]] = []
    for reading, value in readings.items():
        array = _array(value)
        if jnp.ndim(array):
            each = enumerate(array)
            found += [(f"{prefix}/{i}/{reading}", layer) for i, layer in each]
        else:
            found.append((f"{prefix}/{reading}", array))
    return found


def _hyperparams(tree: Any, above: tuple[str, ...]) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = {}
    for keys, state in nodes_of(tree, _INJECTED):
        # Keys of a dict in a state are the labels of optax.partition.
        labels = [str(k.key) for k in keys if isinstance(k, jax.tree_util.DictKey)]
        parts = (*above, *labels)
        own = {
            "/".join(("hyperparams", *parts, name)): _array(value)
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


def _array(value: Any) -> Any:
    """The array itself, also where nnx.Optimizer put it into a Variable."""
    (array,) = jax.tree.leaves(value)
    return array
