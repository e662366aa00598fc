"""Causal attention with rotary positions and grouped heads."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .layout import BY_FEATURE
from .parts import Build, DecoderConfig

# Positions whose scores are in memory at once: few enough for a TPU's own memory.
QUERIES = 128


class Attention(nnx.Module):
    """Queries, keys and values of a layer, and what they give."""

    def __init__(self, config: DecoderConfig, build: Build, *, rngs: nnx.Rngs):
        self.config, self.layout = config, build.layout
        width, inner = config.width, config.kv_heads * config.head_width
        # A device that would hold no whole head of keys has them all.
        some = "model" if build.layout.divides("model", config.kv_heads) else None
        rank = build.lora_rank
        self.query = build.linear(width, width, (None, "model"), rngs=rngs, rank=rank)
        self.key = build.linear(width, inner, (None, some), rngs=rngs)
        self.value = build.linear(width, inner, (None, some), rngs=rngs, rank=rank)
        self.output = build.linear(width, width, ("model", None), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = self.query, self.key, self.value
        query, key, value = (self._heads(part(x)) for part in parts)
        angles = rotary_angles(x.shape[1], self.config)
        mixed = causal_attention(rotated(query, angles), rotated(key, angles), value)
        return self.output(self.layout.place(mixed.reshape(x.shape), *BY_FEATURE))

    def _heads(self, x: jax.Array) -> jax.Array:
        """From (batch, length, features) to a head for each query's."""
        x = x.reshape(*x.shape[:2], -1, self.config.head_width)
        x = jnp.repeat(x, self.config.heads // x.shape[2], axis=2)
        return self.layout.place(x, "data", None, "model", None)


def rotary_angles(length: int, config: DecoderConfig) -> jax.Array:
    """The angle of each position (rows) and each pair of features (columns)."""
    half = config.head_width // 2
    rates = config.theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    return jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None]


def rotated(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns the features i and i + width / 2 of each head by an angle."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (f(angles)[None, :, None] for f in (jnp.cos, jnp.sin))
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def causal_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of (batch, length, heads, width), a chunk of queries at a time."""
    length = query.shape[1]
    queries = in_chunks(query, QUERIES)
    rows = jnp.arange(length).reshape(len(queries), -1)

    @jax.checkpoint
    def chunk(part: Any) -> jax.Array:
        query, rows = part
        scores = jnp.einsum(
            "bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32
        )
        seen = rows[:, None] >= jnp.arange(length)[None]
        scores = jnp.where(seen[None, None], scores * query.shape[-1] ** -0.5, -1e30)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    mixed = jax.lax.map(chunk, (queries, rows))
    return jnp.moveaxis(mixed, 0, 1).reshape(query.shape)


def in_chunks(x: jax.Array, most: int) -> jax.Array:
    """(batch, length, ...) to (chunks, batch, at most so many positions, ...)."""
    length = x.shape[1]
    size = next(size for size in range(min(most, length), 0, -1) if not length % size)
    return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)
