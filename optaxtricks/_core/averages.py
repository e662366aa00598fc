"""The state of a moving average of parameters, and putting it in their place."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from . import checks
from .paths import flatten, leaves_with_paths, listing
from .serialized import serialized_state
from .state_parts import nodes_of


@serialized_state
class EmaParamsState(NamedTuple):
    """State of :func:`ema_params`.

    Attributes:
      ema: the average, laid out like the parameters, in the dtype asked for; the
        parameters themselves until something has been averaged.
      step: int32 scalar, the number of earlier averages; ``None`` with a decay that is
        no schedule.
      call: int32 scalar, the number of earlier calls of this window; ``None`` where
        every call takes an average.
      weight: one minus the product of the decays so far: how much of an average begun
        at zero the parameters would make up. A float32 scalar and, as that alone would
        stand still near 1, another with what its rounding left. ``None`` without
        ``debias``.
    """

    ema: optax.Params
    step: jax.Array | None
    call: jax.Array | None
    weight: tuple[jax.Array, jax.Array] | None


def averaged(params: Any, opt_state: Any, *, by: str) -> Any:
    """The parameters with every average in the state in its parameter's place.

    No leaf is a buffer of the parameters or of the state.
    """
    averages = _averages(opt_state, by=by)
    leaves, layout = flatten(params)
    paths = [path for path, _ in leaves_with_paths(params)]
    if absent := sorted(set(averages) - set(paths)):
        raise ValueError(
            f"opt_state has an average of {listing(absent)}, but params has no such "
            "leaf."
        )
    pairs = zip(paths, leaves, strict=True)
    out = [_fresh(path, leaf, averages.get(path), by) for path, leaf in pairs]
    return jax.tree.unflatten(layout, out)


def _averages(opt_state: Any, *, by: str) -> dict[str, Any]:
    """The averages by path, of all parts of an optimizer together."""
    states = [state for _, state in nodes_of(opt_state, EmaParamsState)]
    if not states:
        raise ValueError(
            f"{by} found no average in opt_state; ema_params makes an EmaParamsState. "
            f"{checks.LOST_TYPES}"
        )
    found: dict[str, Any] = {}
    for state in states:
        for path, average in leaves_with_paths(state.ema):
            if path in found:
                raise ValueError(
                    f"opt_state has two averages of the leaf at {path!r}; read the "
                    "one that is meant with optax.tree.get."
                )
            found[path] = average
    return found


def _fresh(path: str, param: Any, average: Any, by: str) -> Any:
    if average is None:
        return jnp.array(param) if hasattr(param, "shape") else param
    if jnp.shape(average) != jnp.shape(param):
        raise ValueError(
            f"{by} got a leaf of shape {jnp.shape(param)} at {path!r}, of which "
            f"opt_state has an average of shape {jnp.shape(average)}."
        )
    return jnp.array(average, dtype=jnp.result_type(param), copy=True)
