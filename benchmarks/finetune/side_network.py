"""The classifier with a ladder beside its encoder (Sung et al., 2022)."""

import dataclasses
from typing import Any

import jax
from flax import nnx

import optaxtricks as ot

from .encoder import Attention, Classifier, EncoderConfig, Layer, attention_bias
from .errors import InputError

REDUCTION = 8


class SideAttention(Attention):
    """Attention example by example, with scores computed again for the backward pass.

    A side network has as many heads as its encoder, hence as many attention scores.
    Kept, they would be most of a ladder's memory; at its width they cost little.
    """

    def mix(
        self, query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array
    ) -> jax.Array:
        one = jax.checkpoint(lambda example: Attention.mix(self, *example))
        return jax.lax.map(one, (query, key, value, bias))


class SideLayer(Layer):
    """A layer with that attention."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.attention = SideAttention(config, rngs=rngs)


class LadderClassifier(Classifier):
    """A side network of narrow layers on the encoder's taps, merged at the top.

    The merge starts as the identity, so training starts at the pretrained model.
    """

    def __init__(self, config: EncoderConfig, num_classes: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_classes, rngs=rngs)
        narrow = side_config(config)
        self.side = ot.nn.SideLadder(
            lambda width, layer, *, rngs: SideLayer(narrow, rngs=rngs),
            width=config.hidden_size,
            num_layers=config.num_hidden_layers,
            reduction=REDUCTION,
            num_heads=config.num_attention_heads,
            rngs=rngs,
        )

    def __call__(
        self, ids: jax.Array, types: jax.Array, mask: jax.Array, **dropout: Any
    ) -> jax.Array:
        # Noise in what is not trained would only cost time: an eighth of a step.
        taps = self.encoder.taps(ids, types, mask, deterministic=True)
        return self.from_taps(taps, mask, **dropout)

    def from_taps(
        self, taps: list[jax.Array], mask: jax.Array, **dropout: Any
    ) -> jax.Array:
        """Class scores of the encoder's hidden states."""
        bias = attention_bias(mask, taps[0].dtype)
        return self.classify(self.side(taps, bias, **dropout), mask, **dropout)


def side_config(config: EncoderConfig) -> EncoderConfig:
    """A side layer: all widths divided, the number of heads as it is."""
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % REDUCTION:
            raise InputError(
                f"a ladder needs a {name!r} that {REDUCTION} divides, the checkpoint "
                f"has {getattr(config, name)}."
            )
    width, heads = config.hidden_size // REDUCTION, config.num_attention_heads
    if width % heads:
        raise InputError(
            f"a ladder of width {width} (1/{REDUCTION} of the checkpoint's) is not "
            f"divisible by its {heads} attention heads."
        )
    inner = config.intermediate_size // REDUCTION
    return dataclasses.replace(config, hidden_size=width, intermediate_size=inner)


def pruned_side(config: EncoderConfig, encoder: Any, fisher: Any) -> Any:
    """Side layers that are their encoder layers, cut down by Fisher information.

    One choice of channels serves the whole residual stream; every attention head and
    every feed-forward layer makes its own.
    """
    narrow = ot.structural_prune(
        encoder["layers"],
        fisher["encoder"]["layers"],
        _groups(config),
        keep_fraction=1 / REDUCTION,
    )
    return {"side": {f"block_{number}": layer for number, layer in narrow.items()}}


def _groups(config: EncoderConfig) -> list[Any]:
    stream = ot.PruneGroup(
        {
            r"(query|key|value|up)/kernel$": 0,
            r"(output|down)/kernel$": 1,
            r"(output|down)/bias$": 0,
            r"norm/(scale|bias)$": 0,
        }
    )
    groups = [stream]
    for layer in range(config.num_hidden_layers):
        heads = {
            rf"^{layer}/attention/(query|key|value)/kernel$": 1,
            rf"^{layer}/attention/(query|key|value)/bias$": 0,
            rf"^{layer}/attention/output/kernel$": 0,
        }
        inner = {
            rf"^{layer}/up/kernel$": 1,
            rf"^{layer}/up/bias$": 0,
            rf"^{layer}/down/kernel$": 0,
        }
        groups.append(ot.PruneGroup(heads, heads=config.num_attention_heads))
        groups.append(ot.PruneGroup(inner))
    return groups
