"""What a ladder of NNX and one of Linen share: checks, gates, and the climb."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks

GATES = ("scalar", "vector", "sum", "constant")
MERGES = ("gated", "side", None)
Part = Callable[[str], Callable[..., Any]]
"""From a name, the submodule of a ladder."""
Taps: TypeAlias = Sequence[Any] | jax.Array | np.ndarray
"""The embedding's tap and one a layer: listed, in one array, or as a pair of the first
and an array of the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rungs:
    """The checked layout of a ladder, and its arithmetic. See `SideLadder`."""

    width: int
    num_layers: int
    reduction: int
    keep: Sequence[int] | None
    gate: str
    gate_value: float | None
    temperature: float
    merge: str | None
    num_heads: int | None
    param_dtype: Any

    def __post_init__(self) -> None:
        checks.positive_int(width=self.width, num_layers=self.num_layers)
        checks.positive_int(reduction=self.reduction)
        checks.chosen(GATES, gate=self.gate)
        checks.chosen(MERGES, merge=self.merge)
        checks.positive(temperature=self.temperature)
        if checks.float_dtype(param_dtype=self.param_dtype) is None:
            raise TypeError("param_dtype must be a dtype, got None.")
        self._check_gate_value()
        self._check_keep()
        if self.width % self.reduction:
            raise ValueError(
                f"reduction must divide width, got reduction={self.reduction} and "
                f"width={self.width}."
            )
        if self.num_heads is not None:
            checks.positive_int(num_heads=self.num_heads)
            if self.side_width % self.num_heads:
                raise ValueError(
                    f"num_heads must divide the side width, got {self.num_heads} heads "
                    f"and a width of {self.width} // {self.reduction} = "
                    f"{self.side_width}."
                )

    def _check_gate_value(self) -> None:
        if (self.gate == "constant") != (self.gate_value is not None):
            raise ValueError(
                "gate_value goes with gate='constant', and only with it, got "
                f"gate={self.gate!r} and gate_value={self.gate_value!r}."
            )
        if self.gate_value is not None:
            checks.unit_interval(schedule=False, gate_value=self.gate_value)

    def _check_keep(self) -> None:
        if self.keep is None:
            return
        if not _is_ints(self.keep):
            raise TypeError(f"keep must be a sequence of ints, got {self.keep!r}.")
        kept = [int(i) for i in self.keep]
        ascending = kept and kept == sorted(set(kept))
        if not ascending or kept[0] < 0 or kept[-1] >= self.num_layers:
            raise ValueError(
                f"keep must hold ascending indices in [0, {self.num_layers}), at least "
                f"one, got {kept}."
            )
        # NNX keeps this object in what it hashes.
        object.__setattr__(self, "keep", tuple(kept))

    @property
    def side_width(self) -> int:
        """Width of the side state."""
        return self.width // self.reduction

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a rung."""
        return tuple(range(self.num_layers) if self.keep is None else self.keep)

    @property
    def downs(self) -> tuple[str, ...]:
        """Names of the projections to the side width."""
        return ("embed_down", *(f"down_{i}" for i in self.layers))

    @property
    def gate_shape(self) -> tuple[int, ...] | None:
        """Shape of the gates, if they are trained."""
        rungs = (len(self.layers),)
        return {"scalar": rungs, "vector": (*rungs, self.side_width)}.get(self.gate)

    @property
    def gate_dtype(self) -> Any:
        """At least float32: a gate moves by less than bfloat16 can tell."""
        return _wide(self.param_dtype)

    def listed(self, taps: Taps) -> list[Any]:
        """The embedding's tap and one a layer, from any form in which they come."""
        if _is_array(taps):
            if taps.ndim == 0:
                raise ValueError("taps in one array need an axis that counts them.")
            return list(taps)
        taps = list(taps)
        # Taps of one layer are a pair too, but of one shape.
        if len(taps) != 2 or not all(map(_is_array, taps)):
            return taps
        first, layers = taps
        if layers.ndim != first.ndim + 1:
            return taps
        if len(layers) != self.num_layers:
            raise ValueError(
                f"a ladder over {self.num_layers} layers needs their taps in an array "
                f"of {self.num_layers} behind the embedding's, got shape "
                f"{layers.shape}."
            )
        return [first, *layers]

    def climb(
        self, part: Part, gate: Any, taps: Any, args: Any, options: Mapping[str, Any]
    ) -> jax.Array:
        """The side state above the last side block."""
        taps = self._taps(taps)
        state, mix = part("embed_down")(taps[0]), self._mixer(gate, taps[0].dtype)
        for rung, layer in enumerate(self.layers):
            state = mix(rung, state, part(f"down_{layer}")(taps[layer + 1]))
            above = part(f"block_{layer}")(state, *args, **options)
            if (shape := getattr(above, "shape", None)) != state.shape:
                what = type(above).__name__ if shape is None else f"shape {shape}"
                raise ValueError(
                    f"the side block of layer {layer} must map an array of shape "
                    f"{state.shape} to one of the same shape, got {what}."
                )
            state = above.astype(state.dtype)
        return state

    def finish(self, part: Part, alpha: Any, state: jax.Array, top: Any) -> jax.Array:
        """The side state brought to the backbone's width and merged with its top."""
        if self.merge is None:
            raise ValueError("merge=None has nothing to merge: use side_state.")
        if state.ndim == 0 or state.shape[-1] != self.side_width:
            raise ValueError(
                f"merge_top needs a side state of width {self.side_width}, got shape "
                f"{state.shape}."
            )
        up = part("up")(state)
        if alpha is None:
            return up
        if top is None or top.shape != up.shape:
            have = "None" if top is None else f"shape {top.shape}"
            raise ValueError(
                f"merge='gated' needs a top of the backbone of shape {up.shape}, got "
                f"{have}."
            )
        wide = _wide(top.dtype)
        share, top_ = alpha.astype(wide), jax.lax.stop_gradient(top).astype(wide)
        return (share * top_ + (1 - share) * up.astype(wide)).astype(top.dtype)

    def _mixer(self, gate: Any, dtype: Any) -> Callable[..., jax.Array]:
        """A function of rung, side state and lowered tap."""
        wide = _wide(dtype)
        if self.gate == "sum":
            mix = lambda rung, h, low: h + low
        else:
            share = self._shares(gate, wide)
            mix = lambda rung, h, low: _between(share[rung], h, low)
        return lambda rung, h, low: mix(rung, h.astype(wide), low.astype(wide)).astype(
            dtype
        )

    def _shares(self, gate: Any, dtype: Any) -> jax.Array:
        """What every rung keeps of the side state."""
        if self.gate_value is not None:
            return jnp.full(len(self.layers), self.gate_value, dtype)
        return jax.nn.sigmoid(gate.astype(dtype) / self.temperature)

    def _taps(self, taps: Any) -> list[Any]:
        """The taps without a way back into the backbone."""
        taps = self.listed(taps)
        if len(taps) != self.num_layers + 1:
            raise ValueError(
                f"a ladder over {self.num_layers} layers needs {self.num_layers + 1} "
                f"taps, the embedding's and one a layer, got {len(taps)}."
            )
        used = [0, *(layer + 1 for layer in self.layers)]
        for i in used:
            self._check_tap(i, taps[i], taps[0])
        return [
            jax.lax.stop_gradient(x) if i in used else None for i, x in enumerate(taps)
        ]

    def _check_tap(self, i: int, tap: Any, first: Any) -> None:
        which = f"the tap of layer {i - 1}" if i else "the tap of the embedding"
        if not _is_array(tap):
            raise TypeError(f"{which} must be an array, got a {type(tap).__name__}.")
        if not jnp.issubdtype(tap.dtype, jnp.floating):
            raise TypeError(f"{which} must be floating-point, got {tap.dtype}.")
        if tap.ndim == 0 or tap.shape[-1] != self.width:
            raise ValueError(
                f"{which} must have the ladder's width {self.width}, got shape "
                f"{tap.shape}."
            )
        if tap.shape != first.shape:
            raise ValueError(
                f"{which} must have the embedding's shape {first.shape}, got "
                f"{tap.shape}."
            )


def like_inputs(arrays: Sequence[Any], dtype: Any = None, inexact: bool = True) -> Any:
    """Flax's `promote_dtype` for layers that compute in the dtype of their input."""
    del dtype, inexact
    return [x if x is None else jnp.asarray(x, arrays[0].dtype) for x in arrays]


def _is_array(value: Any) -> TypeGuard[jax.Array | np.ndarray]:
    return isinstance(value, jax.Array | np.ndarray)


def _wide(dtype: Any) -> Any:
    return np.promote_types(dtype, np.float32)


def _between(share: jax.Array, kept: jax.Array, new: jax.Array) -> jax.Array:
    share = share.reshape((1,) * (kept.ndim - share.ndim) + share.shape)
    return share * kept + (1 - share) * new


def _is_ints(values: Any) -> bool:
    is_int = lambda x: isinstance(x, int | np.integer) and not isinstance(x, bool)
    return isinstance(values, Sequence) and all(map(is_int, values))
