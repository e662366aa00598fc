"""A ladder of side blocks over the activations of a frozen backbone, in Linen."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..rungs import Rungs, Taps, like_inputs


class SideLadder(nn.Module):
    r"""Gated rungs over tapped activations, as ``optaxtricks.nn.SideLadder``.

    Equations, guarantees, parameters, the forms of taps and the use for an encoder and
    a decoder are told there; both have the same names of parameters, so that they can
    be exchanged.

    Attributes:
      block: from the side width and the index of a layer, an unbound module, the side
        block, which keeps the shape of its first input.
      width: of the taps.
      num_layers: of the backbone.
      reduction: the side width is ``width // reduction``.
      keep: ascending indices of the layers that have a rung; ``None`` for all.
      gate: ``"scalar"``, ``"vector"``, ``"sum"`` or ``"constant"``.
      gate_value: the constant gate.
      temperature: of trained gates.
      merge: ``"gated"``, ``"side"`` or ``None``.
      num_heads: of the side blocks; only checked.
      kernel_init: of the ladder's projections.
      param_dtype: of the ladder's projections.

    Raises:
      ValueError, TypeError: as there.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> from flax import linen as nn
      >>> class Block(nn.Module):  # four heads, as in the backbone
      ...     width: int
      ...     @nn.compact
      ...     def __call__(self, h, mask=None):
      ...         attend = nn.MultiHeadAttention(num_heads=4, deterministic=True)
      ...         return h + attend(nn.LayerNorm()(h), mask=mask)
      >>> block = lambda width, layer: Block(width)
      >>> ladder = ot.nn.linen.SideLadder(block, width=64, num_layers=3, reduction=8)
      >>> taps = [jnp.full((2, 5, 64), i) for i in (0.0, 1.0, 2.0, 3.0)]
      >>> variables = ladder.init(jax.random.key(0), taps)
      >>> bool((ladder.apply(variables, taps, mask=None) == taps[-1]).all())
      True
    """

    block: Callable[[int, int], Any]
    width: int
    num_layers: int
    reduction: int
    keep: Sequence[int] | None = None
    gate: str = "scalar"
    gate_value: float | None = None
    temperature: float = 0.1
    merge: str | None = "gated"
    num_heads: int | None = None
    kernel_init: Callable[..., Any] = nn.initializers.normal(0.01)
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _ = self.rungs
        super().__post_init__()

    @property
    def rungs(self) -> Rungs:
        """The layout of the ladder, checked."""
        return Rungs(
            width=self.width,
            num_layers=self.num_layers,
            reduction=self.reduction,
            keep=self.keep,
            gate=self.gate,
            gate_value=self.gate_value,
            temperature=self.temperature,
            merge=self.merge,
            num_heads=self.num_heads,
            param_dtype=self.param_dtype,
        )

    @property
    def side_width(self) -> int:
        """Width of the side state."""
        return self.rungs.side_width

    def setup(self) -> None:
        """Names the parts as the NNX module does."""
        rungs = self.rungs
        for name in rungs.downs:
            setattr(self, name, self._linear(rungs.side_width))
        for layer in rungs.layers:
            setattr(self, f"block_{layer}", self.block(rungs.side_width, layer))
        if self.merge is not None:
            self.up = self._linear(self.width)
        shape, dtype = rungs.gate_shape, rungs.gate_dtype
        self._gate = self._alpha = None
        if shape is not None:
            self._gate = self.param("gate", nn.initializers.zeros, shape, dtype)
        if self.merge == "gated":
            self._alpha = self.param("top_gate", nn.initializers.ones, (), dtype)

    def __call__(self, taps: Taps, *args: Any, **kwargs: Any) -> jax.Array:
        """From the taps, the top: :meth:`side_state`, then :meth:`merge_top`."""
        taps = self.rungs.listed(taps)
        state = self.side_state(taps, *args, **kwargs)
        return state if self.merge is None else self.merge_top(state, taps[-1])

    def side_state(self, taps: Taps, *args: Any, **kwargs: Any) -> jax.Array:
        """The side state above the last side block, of width ``side_width``.

        Further arguments go to every side block.
        """
        return self.rungs.climb(self._part, self._gate, taps, args, kwargs)

    def merge_top(self, state: jax.Array, top: Any = None) -> jax.Array:
        """A side state, brought to the width and merged with the backbone's ``top``."""
        return self.rungs.finish(self._part, self._alpha, state, top)

    def _part(self, name: str) -> Any:
        return getattr(self, name)

    def _linear(self, features: int) -> nn.Dense:
        return nn.Dense(
            features,
            kernel_init=self.kernel_init,
            param_dtype=self.param_dtype,
            promote_dtype=_like_inputs,
        )


def _like_inputs(*arrays: Any, dtype: Any = None, inexact: bool = True) -> Any:
    return like_inputs(arrays, dtype, inexact)
