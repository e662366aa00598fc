"""The classifier with the small extra modules that LoRA and adapters train."""

import functools
from typing import Any

import jax
from flax import nnx

from .encoder import ACTIVATIONS, Classifier, EncoderConfig, Layer

LORA_RANK, LORA_ALPHA = 8, 8.0
LORA_MATRICES = ("query", "value")

# The paper's best fixed bottleneck is 64 for BERT's widths of 768 and 1024; the
# default encoder has half the smaller one.
ADAPTER_WIDTH = 32
ADAPTER_INIT = 1e-3


class LoRALinear(nnx.Linear):
    """A linear layer plus a product of two thin matrices, which starts at zero."""

    def __init__(self, width: int, out: int, *, rngs: nnx.Rngs):
        super().__init__(width, out, rngs=rngs)
        gaussian = jax.nn.initializers.normal(width**-0.5)
        zeros = jax.nn.initializers.zeros
        thin = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.lora_a = thin(width, LORA_RANK, kernel_init=gaussian)
        self.lora_b = thin(LORA_RANK, out, kernel_init=zeros)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        low = self.lora_b(self.lora_a(inputs))
        return super().__call__(inputs) + LORA_ALPHA / LORA_RANK * low


class LoRAClassifier(Classifier):
    """LoRA on the query and value matrices of every layer (Hu et al., 2021)."""

    def __init__(self, config: EncoderConfig, num_classes: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_classes, rngs=rngs)
        width = config.hidden_size
        for layer in self.encoder.layers:
            for name in LORA_MATRICES:
                setattr(layer.attention, name, LoRALinear(width, width, rngs=rngs))


class Adapter(nnx.Module):
    """A bottleneck with a residual connection; nearly the identity at first."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        small = {"kernel_init": jax.nn.initializers.truncated_normal(ADAPTER_INIT)}
        width = config.hidden_size
        self.down = nnx.Linear(width, ADAPTER_WIDTH, rngs=rngs, **small)
        self.up = nnx.Linear(ADAPTER_WIDTH, width, rngs=rngs, **small)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.up(self.activation(self.down(x)))


class AdaptedLayer(Layer):
    """A layer with an adapter at the end of each half (Houlsby et al., 2019)."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.attention_adapter = Adapter(config, rngs=rngs)
        self.output_adapter = Adapter(config, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array, **dropout: Any) -> jax.Array:
        attended = self.dropout(self.attention(x, bias), **dropout)
        x = self.attention_norm(x + self.attention_adapter(attended))
        expanded = self.dropout(self.down(self.activation(self.up(x))), **dropout)
        return self.norm(x + self.output_adapter(expanded))


class AdapterClassifier(Classifier):
    """The classifier on an encoder of adapted layers."""

    def __init__(self, config: EncoderConfig, num_classes: int, *, rngs: nnx.Rngs):
        super().__init__(config, num_classes, rngs=rngs)
        count = config.num_hidden_layers
        self.encoder.layers = nnx.List(
            [AdaptedLayer(config, rngs=rngs) for _ in range(count)]
        )
