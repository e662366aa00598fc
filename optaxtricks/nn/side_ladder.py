"""A ladder of side blocks over the activations of a frozen backbone, in NNX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .rungs import Rungs, Taps, like_inputs

_SMALL = nnx.initializers.normal(0.01)


class SideLadder(nnx.Module):
    r"""Gated rungs over tapped activations of a frozen backbone (LST).

    A side network of width :math:`d / r` climbs along the backbone. With the taps
    :math:`x_{-1}` (the embedding) and :math:`x_i` (the output of layer i), each behind
    a ``stop_gradient``, and for every layer that has a rung,

    .. math::
        h \leftarrow D_{-1}(x_{-1}), \qquad
        h \leftarrow B_i\bigl(\mu_i h + (1 - \mu_i) D_i(x_i)\bigr), \qquad
        \mu_i = \sigma(a_i / T),

    with side blocks :math:`B_i` of the caller's and :math:`D_i` linear with a bias. By
    ``merge``, the result is

    - ``"gated"``: :math:`\alpha x_{L-1} + (1 - \alpha) U(h)` with U linear and
      :math:`\alpha = 1` at first, so that training starts at the pretrained model
      (only :math:`\alpha` has a gradient there: the rest starts to move at step 2);
    - ``"side"``: :math:`U(h)`, as LST does;
    - ``None``: h itself, with no U.

    The gates :math:`\mu` are, by ``gate``: ``"scalar"``, one a rung; ``"vector"``, one
    an entry; ``"constant"``, ``gate_value``; and ``"sum"`` adds,
    :math:`h + D_i(x_i)`. A gate near 1 ignores the backbone.

    Taps are the embedding's and one a layer: in a sequence, in one array ``(L + 1, ...,
    width)``, or as a backbone under ``lax.scan`` or ``nn.scan`` has them, in a pair of
    the embedding's and one array ``(L, ..., width)`` of the layers.

    For an encoder and a decoder, make two. The side blocks of the decoder attend to the
    side state of the encoder::

        memory = encoder_ladder(encoder_taps, mask=mask)  # merge=None
        features = decoder_ladder(decoder_taps, memory, mask=causal)

    For a side norm below U, or to merge with the backbone behind its final norm::

        state = norm(ladder.side_state(taps))
        features = ladder.merge_top(state, backbone_norm(taps[-1]))

    For the backward pass, memory holds the tap of each rung and what the side blocks
    keep. Attention with as many heads as the backbone's keeps probabilities as large as
    the backbone's, so that long sequences want a block that does not store them.

    Parameters are ``embed_down``, ``down_i``, ``block_i``, ``up``, ``gate`` (a row for
    each rung) and ``top_gate``, with i the index of the layer.

    Guarantees:
      - The gradient with respect to taps and top is exactly zero; no backward pass of
        the backbone is compiled.
      - With ``merge="gated"`` a fresh ladder gives back the last tap, bit for bit but
        for the sign of a zero, if all taps in use are finite.
      - In whatever form the taps come, the result is the same, bit for bit.
      - A layer without a rung has no parameter, and its tap may be ``None``.
      - The result has the dtype of the taps, in which the projections compute; gates
        and mixing are in at least float32.

    Args:
      block: ``block(side_width, layer, rngs=rngs)`` gives the side block of a layer: a
        module that maps ``(..., side_width)`` to the same shape. To keep the number of
        heads, as LST does, give it as many heads as the backbone has.
      width: :math:`d`, of the taps.
      num_layers: :math:`L`, of the backbone.
      reduction: :math:`r`, a divisor of ``width``.
      keep: ascending indices of the layers that have a rung; ``None`` for all.
      gate: ``"scalar"``, ``"vector"``, ``"sum"`` or ``"constant"``.
      gate_value: :math:`\mu` in ``[0, 1]`` for ``gate="constant"``.
      temperature: :math:`T`.
      merge: ``"gated"``, ``"side"`` or ``None``.
      num_heads: of the side blocks; only checked, to divide the side width.
      kernel_init: of the ladder's projections.
      param_dtype: of the ladder's projections; gates have at least float32.
      rngs: an ``nnx.Rngs``.

    Raises:
      ValueError: an argument out of range, a ``reduction`` that does not divide the
        width; when called, taps of another number, width or shape, or a block that
        changes the shape.
      TypeError: an argument of the wrong kind; when called, a tap that is no
        floating-point array.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> from flax import nnx
      >>> class Block(nnx.Module):
      ...     def __init__(self, width, layer, *, rngs):
      ...         heads = 4  # as in the backbone, each of an eighth of the size
      ...         self.attend = nnx.MultiHeadAttention(
      ...             heads, width, decode=False, rngs=rngs
      ...         )
      ...         self.norm = nnx.LayerNorm(width, rngs=rngs)
      ...     def __call__(self, h, mask=None):
      ...         return h + self.attend(self.norm(h), mask=mask)
      >>> ladder = ot.nn.SideLadder(
      ...     Block, width=64, num_layers=3, reduction=8, keep=[0, 2], rngs=nnx.Rngs(0)
      ... )
      >>> taps = [jnp.full((2, 5, 64), i) for i in (0.0, 1.0, 2.0, 3.0)]
      >>> bool((ladder(taps, mask=None) == taps[-1]).all())
      True
      >>> ladder.side_state(taps).shape
      (2, 5, 8)
      >>> scanned = taps[0], jnp.stack(taps[1:])
      >>> bool((ladder(scanned, mask=None) == taps[-1]).all())
      True

    References:
      Sung et al., 2022, `LST: Ladder Side-Tuning for Parameter and Memory Efficient
      Transfer Learning <https://arxiv.org/abs/2206.06522>`_ (code:
      ylsung/Ladder-Side-Tuning). Zhang et al., 2024, `Quantized Side Tuning
      <https://arxiv.org/abs/2401.07159>`_, for the merge with the backbone's top. Its
      code keeps :math:`\sigma(1) = 0.73` of the backbone at first; the paper, and this,
      all of it.
    """

    def __init__(
        self,
        block: Callable[..., Any],
        *,
        width: int,
        num_layers: int,
        reduction: int,
        keep: Sequence[int] | None = None,
        gate: str = "scalar",
        gate_value: float | None = None,
        temperature: float = 0.1,
        merge: str | None = "gated",
        num_heads: int | None = None,
        kernel_init: Callable[..., Any] = _SMALL,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        rungs = self.rungs = Rungs(
            width=width,
            num_layers=num_layers,
            reduction=reduction,
            keep=keep,
            gate=gate,
            gate_value=gate_value,
            temperature=temperature,
            merge=merge,
            num_heads=num_heads,
            param_dtype=param_dtype,
        )

        def linear(inputs: int, outputs: int) -> nnx.Linear:
            return nnx.Linear(
                inputs,
                outputs,
                kernel_init=kernel_init,
                param_dtype=param_dtype,
                promote_dtype=like_inputs,
                rngs=rngs,
            )

        for name in rungs.downs:
            setattr(self, name, linear(width, rungs.side_width))
        for layer in rungs.layers:
            setattr(self, f"block_{layer}", block(rungs.side_width, layer, rngs=rngs))
        if merge is not None:
            self.up = linear(rungs.side_width, width)
        if rungs.gate_shape is not None:
            self.gate = nnx.Param(jnp.zeros(rungs.gate_shape, rungs.gate_dtype))
        if merge == "gated":
            self.top_gate = nnx.Param(jnp.ones((), rungs.gate_dtype))

    @property
    def side_width(self) -> int:
        """Width of the side state."""
        return self.rungs.side_width

    def __call__(self, taps: Taps, *args: Any, **kwargs: Any) -> jax.Array:
        """From the taps, the top: :meth:`side_state`, then :meth:`merge_top`."""
        taps = self.rungs.listed(taps)
        state = self.side_state(taps, *args, **kwargs)
        return state if self.rungs.merge is None else self.merge_top(state, taps[-1])

    def side_state(self, taps: Taps, *args: Any, **kwargs: Any) -> jax.Array:
        """The side state above the last side block, of width ``side_width``.

        Further arguments go to every side block.
        """
        return self.rungs.climb(self._part, self._number("gate"), taps, args, kwargs)

    def merge_top(self, state: jax.Array, top: Any = None) -> jax.Array:
        """A side state, brought to the width and merged with the backbone's ``top``."""
        return self.rungs.finish(self._part, self._number("top_gate"), state, top)

    def _part(self, name: str) -> Any:
        return getattr(self, name)

    def _number(self, name: str) -> jax.Array | None:
        variable = getattr(self, name, None)
        return None if variable is None else variable.get_value()
