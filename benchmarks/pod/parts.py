"""Sizes of a decoder, and the layers it is built of."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .layout import Layout, Spec

# What of a layer is kept for its backward pass: all, what its matrices gave, or its
# input alone.
REMATS = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layer": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder.

    Attributes:
      vocabulary: rows of the embedding.
      width: of the hidden states.
      layers: how many.
      heads: of the queries.
      kv_heads: of keys and values, each shared by `heads / kv_heads` queries.
      hidden: of the feed-forward layers.
      tied: whether logits come from the embedding's table.
      theta: the base of the rotary angles.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    tied: bool = False
    theta: float = 500_000.0

    @property
    def head_width(self) -> int:
        """Of a query, a key or a value."""
        return self.width // self.heads


EPSILON = 1e-5
# But for "tiny", those of Llama 3 and, of 1b, of Llama 3.2.
SIZES = {
    "tiny": DecoderConfig(1024, 64, 2, 8, 4, 128),
    "1b": DecoderConfig(128_256, 2048, 16, 32, 8, 8192, tied=True),
    "8b": DecoderConfig(128_256, 4096, 32, 32, 8, 14_336),
    "70b": DecoderConfig(128_256, 8192, 80, 64, 8, 28_672),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Build:
    """How a decoder is built beside its sizes.

    Attributes:
      layout: where its arrays lie.
      param_dtype: of its parameters, but for those of a ladder or of LoRA.
      remat: a key of `REMATS`.
      lora_rank: of an adapter of queries and values (Hu et al., 2021); 0 for none.
    """

    layout: Layout
    param_dtype: Any = jnp.float32
    remat: str = "layer"
    lora_rank: int = 0

    def linear(
        self, inputs: int, outputs: int, spec: Spec, *, rngs: nnx.Rngs, rank: int = 0
    ) -> nnx.Linear:
        """A linear layer without a bias, whose kernel is gathered to a layout.

        With a rank, it has an adapter of two float32 matrices.
        """
        options: dict[str, Any] = {
            "use_bias": False,
            "param_dtype": self.param_dtype,
            "kernel_init": nnx.initializers.normal(inputs**-0.5),
            "promote_dtype": self.layout.gathers(spec),
            "rngs": rngs,
        }
        if not rank:
            return nnx.Linear(inputs, outputs, **options)
        adapter = self.layout.gathers((None, None), (None, spec[1]))
        options |= {"lora_rank": rank, "lora_promote_dtype": adapter}
        return nnx.LoRALinear(inputs, outputs, **options)

    def norm(self, width: int) -> "Norm":
        """A norm of states of a width."""
        return Norm(width, self.param_dtype)


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich, 2019), in float32."""

    def __init__(self, width: int, dtype: Any):
        self.scale = nnx.Param(jnp.ones(width, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        square = jnp.square(wide).mean(axis=-1, keepdims=True)
        scale = self.scale.get_value().astype(jnp.float32)
        scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
        return (wide * jax.lax.rsqrt(square + EPSILON) * scale).astype(x.dtype)


class FeedForward(nnx.Module):
    """SwiGLU (Shazeer, 2020), its hidden features divided over a mesh axis."""

    def __init__(
        self, width: int, hidden: int, build: Build, axis: str | None, *, rngs: nnx.Rngs
    ):
        self.gate = build.linear(width, hidden, (None, axis), rngs=rngs)
        self.up = build.linear(width, hidden, (None, axis), rngs=rngs)
        self.down = build.linear(hidden, width, (axis, None), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
