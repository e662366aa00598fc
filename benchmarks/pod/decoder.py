"""A decoder as Llama 3 is one (Grattafiori et al., 2024), its layers in one scan.

Each layer's parameters are a slice of stacks `(layers, ...)`, so that the program is as
long for 80 layers as for 2, but for a ladder's: it has rungs of their own.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import optaxtricks as ot

from .attention import Attention, in_chunks
from .layout import BY_LENGTH
from .parts import REMATS, Build, DecoderConfig, FeedForward

REDUCTION = 8
LOGITS = 512  # positions whose logits are in memory at once


class Layer(nnx.Module):
    """Attention and SwiGLU, each behind a norm and beside a residual."""

    def __init__(self, config: DecoderConfig, build: Build, *, rngs: nnx.Rngs):
        width = config.width
        self.layout = build.layout
        self.attention_norm = build.norm(width)
        self.attention = Attention(config, build, rngs=rngs)
        self.norm = build.norm(width)
        self.feed_forward = FeedForward(width, config.hidden, build, "model", rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """From and to (batch, length, width), divided by length where it is kept."""
        inside, kept = self.layout.whole, self.layout.by_length
        x = x + kept(self.attention(inside(self.attention_norm(x))))
        return x + kept(self.feed_forward(inside(self.norm(x))))


class Top(nnx.Module):
    """What stands above the layers: the last norm, and the loss of the next tokens."""

    def __init__(self, config: DecoderConfig, build: Build, *, rngs: nnx.Rngs):
        self.config, self.layout = config, build.layout
        self.norm = build.norm(config.width)
        if config.tied:
            self.word = _table(config, build, rngs=rngs)
        else:
            sizes = config.width, config.vocabulary
            self.head = build.linear(*sizes, (None, "model"), rngs=rngs)

    def loss(self, states: jax.Array, targets: jax.Array) -> jax.Array:
        """Mean cross-entropy in nats, of logits that are made a chunk at a time."""
        kernel = self._unembedding()
        states = self.layout.whole(self.norm(states))

        @jax.checkpoint
        def chunk(total: jax.Array, part: Any) -> tuple[jax.Array, None]:
            states, targets = part
            logits = jnp.einsum("bld,dv->blv", states, kernel)
            logits = self.layout.place(logits, "data", None, "model")
            return total + _cross_entropy(logits.astype(jnp.float32), targets), None

        parts = in_chunks(states, LOGITS), in_chunks(targets, LOGITS)
        total, _ = jax.lax.scan(chunk, jnp.zeros((), jnp.float32), parts)
        return total / targets.size

    def _unembedding(self) -> jax.Array:
        if self.config.tied:
            kernel = self.word.embedding.get_value().T
        else:
            kernel = self.head.kernel.get_value()
        return self.layout.place(kernel.astype(jnp.bfloat16), None, "model")


class Decoder(Top):
    """Embedding, layers and top."""

    def __init__(self, config: DecoderConfig, build: Build, *, rngs: nnx.Rngs):
        super().__init__(config, build, rngs=rngs)
        self.remat = build.remat
        if not config.tied:
            self.word = _table(config, build, rngs=rngs)
        make = lambda key: Layer(config, build, rngs=nnx.Rngs(params=key))
        self.layers = nnx.vmap(make)(jax.random.split(rngs.params(), config.layers))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """States above the last layer."""
        return self._climb(self.embed(tokens), taps=False)[0]

    def taps(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The embedding's states, and those above each layer, stacked."""
        first = self.embed(tokens)
        return first, self._climb(first, taps=True)[1]

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Vectors of tokens, in bfloat16.

        The table stays where it is: each device looks up its part of every token's
        vector, which travels to where the token is. So does its cotangent.
        """
        table, place = self.word.embedding.get_value(), self.layout.place
        rows = table[place(tokens, None, None)]
        rows = place(rows.astype(jnp.bfloat16), None, None, "data")
        return place(rows, *BY_LENGTH)

    def _climb(self, x: jax.Array, *, taps: bool) -> tuple[jax.Array, Any]:
        graph, stacks = nnx.split(self.layers)

        def layer(x: jax.Array, part: Any) -> tuple[jax.Array, Any]:
            x = nnx.merge(graph, part)(x)
            return x, x if taps else None

        if (policy := REMATS[self.remat]) is not None:
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=False)
        return jax.lax.scan(layer, x, stacks)


class SideBlock(nnx.Module):
    """A narrow feed-forward layer of a ladder; it computes by length, as taps lie."""

    def __init__(self, width: int, hidden: int, build: Build, *, rngs: nnx.Rngs):
        self.norm = build.norm(width)
        self.feed_forward = FeedForward(width, hidden, build, None, rngs=rngs)

    @nnx.remat
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.feed_forward(self.norm(x))


def side_ladder(
    config: DecoderConfig, build: Build, *, rngs: nnx.Rngs
) -> ot.nn.SideLadder:
    """A ladder in float32, of an eighth of the width."""
    narrow, hidden = Build(layout=build.layout), config.hidden // REDUCTION
    return ot.nn.SideLadder(
        lambda width, layer, *, rngs: SideBlock(width, hidden, narrow, rngs=rngs),
        width=config.width,
        num_layers=config.layers,
        reduction=REDUCTION,
        rngs=rngs,
    )


class LadderDecoder(Decoder):
    """A frozen decoder with a ladder (Sung et al., 2022) between layers and top."""

    def __init__(self, config: DecoderConfig, build: Build, *, rngs: nnx.Rngs):
        super().__init__(config, build, rngs=rngs)
        self.side = side_ladder(config, build, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """States above the ladder."""
        return self.side(self.taps(tokens))


class LadderTop(Top):
    """The same on taps that were computed before: without embedding and layers."""

    def __init__(self, config: DecoderConfig, build: Build, *, rngs: nnx.Rngs):
        super().__init__(config, build, rngs=rngs)
        self.side = side_ladder(config, build, rngs=rngs)

    def __call__(self, taps: jax.Array) -> jax.Array:
        """From taps (batch, layers + 1, length, width) to states above the ladder."""
        return self.side([taps[:, layer] for layer in range(taps.shape[1])])


def _table(config: DecoderConfig, build: Build, *, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
        config.vocabulary,
        config.width,
        param_dtype=build.param_dtype,
        embedding_init=nnx.initializers.normal(0.02),
        rngs=rngs,
    )


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Sum over all tokens; a comparison finds the target on whatever device it is."""
    words = jnp.arange(logits.shape[-1])[None, None]
    chosen = jnp.where(words == targets[..., None], logits, 0.0).sum(axis=-1)
    return (jax.nn.logsumexp(logits, axis=-1) - chosen).sum()
