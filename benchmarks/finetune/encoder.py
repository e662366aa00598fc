"""A BERT/RoBERTa encoder and a linear classifier on top of it, in Flax NNX.

A mask says which tokens are real. With pairs of texts it is an array of integers: 0 for
padding, else the number of the token's text, 1 or 2.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .errors import InputError

ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}

# Families that share BERT's layout, and those of them that number positions
# from padding_idx + 1, as RoBERTa does.
MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "camembert")
OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The fields of a Hugging Face ``config.json`` that the encoder reads."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str
    layer_norm_eps: float
    hidden_dropout_prob: float
    pad_token_id: int

    @property
    def position_offset(self) -> int:
        """The row of the position table that the first token uses."""
        return self.pad_token_id + 1 if self.model_type in OFFSET_TYPES else 0

    @property
    def max_length(self) -> int:
        """The longest sequence that the position table can serve."""
        return self.max_position_embeddings - self.position_offset


DEFAULTS = {
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "pad_token_id": 0,
}


def parse_config(raw: Any, source: str) -> EncoderConfig:
    """Checks the content of a ``config.json``; `source` names it in messages."""
    if not isinstance(raw, dict):
        raise InputError(f"{source}: expected a JSON object.")
    values = {}
    for field in dataclasses.fields(EncoderConfig):
        if field.name not in raw and field.name not in DEFAULTS:
            raise InputError(f"{source}: field {field.name!r} is missing.")
        value = raw.get(field.name, DEFAULTS.get(field.name))
        values[field.name] = _checked(field, value, source)
    config = EncoderConfig(**values)
    _check_choices(config, raw, source)
    return config


def _checked(field: dataclasses.Field, value: Any, source: str) -> Any:
    if field.type is int:
        smallest = 0 if field.name == "pad_token_id" else 1
        good = type(value) is int and value >= smallest
        want = f"an integer of at least {smallest}"
    elif field.type is float:
        good = type(value) in (int, float) and 0.0 <= value < 1.0
        want = "a number in [0, 1)"
    else:
        good, want = isinstance(value, str), "a string"
    if not good:
        raise InputError(f"{source}: {field.name!r} must be {want}, got {value!r}.")
    return value


def _check_choices(config: EncoderConfig, raw: dict, source: str) -> None:
    for name, allowed in (
        ("model_type", MODEL_TYPES),
        ("hidden_act", tuple(ACTIVATIONS)),
    ):
        value = getattr(config, name)
        if value not in allowed:
            raise InputError(
                f"{source}: {name!r} must be one of {sorted(allowed)}, got {value!r}."
            )
    if config.hidden_size % config.num_attention_heads:
        raise InputError(
            f"{source}: 'hidden_size' {config.hidden_size} is not divisible by "
            f"'num_attention_heads' {config.num_attention_heads}."
        )
    if config.max_length < 1:
        raise InputError(
            f"{source}: 'max_position_embeddings' "
            f"{config.max_position_embeddings} leaves no room for a token."
        )
    position_type = raw.get("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise InputError(
            f"{source}: 'position_embedding_type' must be 'absolute', "
            f"got {position_type!r}."
        )


class Embeddings(nnx.Module):
    """Sum of token, position and token-type embeddings, normalised."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.word = nnx.Embed(config.vocab_size, width, rngs=rngs)
        self.position = nnx.Embed(config.max_position_embeddings, width, rngs=rngs)
        self.token_type = nnx.Embed(config.type_vocab_size, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=config.layer_norm_eps, rngs=rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)
        self.offset = config.position_offset

    def __call__(self, ids: jax.Array, types: jax.Array, **dropout: Any) -> jax.Array:
        # Rows [offset, offset + length) are a slice, whose gradient is a pad;
        # a lookup would scatter. Padding gets other positions than in torch,
        # which no real token can see.
        table = self.position.embedding[...]
        stop = self.offset + ids.shape[-1]
        positions = table[self.offset : stop]
        kinds = self.token_type.embedding[...]
        typed = jax.nn.one_hot(types, kinds.shape[0], dtype=kinds.dtype) @ kinds
        hidden = self.word(ids) + positions[None] + typed
        return self.dropout(self.norm(hidden), **dropout)


class Attention(nnx.Module):
    """Multi-head self-attention with its output projection.

    There is dropout on hidden states but none on attention weights: with both, it
    took an eighth of a training step on a CPU.
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.query = nnx.Linear(width, width, rngs=rngs)
        self.key = nnx.Linear(width, width, rngs=rngs)
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        split = (*x.shape[:-1], self.heads, -1)
        query, key, value = (
            layer(x).reshape(split) for layer in (self.query, self.key, self.value)
        )
        return self.output(self.mix(query, key, value, bias).reshape(x.shape))

    def mix(
        self, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array
    ) -> jax.Array:
        """Means of the values, weighted by the softmax of the scores."""
        scores = jnp.einsum("...qhd,...khd->...hqk", query, key)
        weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5 + bias, axis=-1)
        return jnp.einsum("...hqk,...khd->...qhd", weights, value)


class Layer(nnx.Module):
    """One post-norm transformer layer."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        width, inner = config.hidden_size, config.intermediate_size
        eps = config.layer_norm_eps
        self.attention = Attention(config, rngs=rngs)
        self.attention_norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.up = nnx.Linear(width, inner, rngs=rngs)
        self.down = nnx.Linear(inner, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=eps, rngs=rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: jax.Array, bias: jax.Array, **dropout: Any) -> jax.Array:
        attended = self.attention(x, bias)
        x = self.attention_norm(x + self.dropout(attended, **dropout))
        expanded = self.down(self.activation(self.up(x)))
        return self.norm(x + self.dropout(expanded, **dropout))


class Encoder(nnx.Module):
    """Token ids to hidden states, as BertModel and RobertaModel compute them."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.layers = nnx.List(
            [Layer(config, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(
        self, ids: jax.Array, types: jax.Array, mask: jax.Array, **dropout: Any
    ) -> jax.Array:
        return self.taps(ids, types, mask, **dropout)[-1]

    def taps(
        self, ids: jax.Array, types: jax.Array, mask: jax.Array, **dropout: Any
    ) -> list[jax.Array]:
        """The embeddings, then the hidden states after every layer."""
        states = [self.embeddings(ids, types, **dropout)]
        bias = attention_bias(mask, states[0].dtype)
        for layer in self.layers:
            states.append(layer(states[-1], bias, **dropout))
        return states


def attention_bias(mask: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """What is added to attention scores, so that no token sees padding."""
    seen = mask.astype(bool)[:, None, None, :]
    return jnp.where(seen, 0.0, jnp.finfo(dtype).min).astype(dtype)


class Classifier(nnx.Module):
    """A linear head on the mean of the encoder's states over real tokens."""

    def __init__(self, config: EncoderConfig, num_classes: int, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)
        self.head = nnx.Linear(config.hidden_size, num_classes, rngs=rngs)
        self.paired = False

    def compare_texts(self, *, rngs: nnx.Rngs) -> None:
        """Gives the head a comparison of two texts too, as sentence encoders need.

        On the mean over both alone, full fine-tuning stayed at chance in 150 steps of
        `stdlib-pairs`. The features are much like those of Reimers and Gurevych (2019).
        """
        width, num_classes = self.head.in_features, self.head.out_features
        self.head = nnx.Linear(PAIR_FEATURES * width, num_classes, rngs=rngs)
        self.paired = True

    def __call__(
        self, ids: jax.Array, types: jax.Array, mask: jax.Array, **dropout: Any
    ) -> jax.Array:
        return self.classify(self.encoder(ids, types, mask, **dropout), mask, **dropout)

    def classify(self, hidden: jax.Array, mask: jax.Array, **dropout: Any) -> jax.Array:
        """Class scores of hidden states."""
        pooled = mean_state(hidden, mask.astype(bool))
        if self.paired:
            first, second = (_unit(mean_state(hidden, mask == n)) for n in (1, 2))
            features = [pooled, first * second, jnp.abs(first - second)]
            pooled = jnp.concatenate(features, axis=-1)
        return self.head(self.dropout(pooled, **dropout))


# The mean over both texts, and the product and distance of the means of each.
PAIR_FEATURES = 3


def mean_state(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the tokens of a mask; zero over none."""
    weights = mask.astype(hidden.dtype)
    total = jnp.einsum("bld,bl->bd", hidden, weights)
    return total / jnp.maximum(weights.sum(axis=-1, keepdims=True), 1.0)


def _unit(x: jax.Array) -> jax.Array:
    """Scaled to a root mean square of 1, so that products sum to a cosine."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
