"""Three layers in a list, and in one leaf on some axis."""

import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from optaxtricks._core import counter_hash, layers
from tests.problems import values

LAYERS = 3
AXES = [0, 1]


def unrolled(dtype: Any = jnp.float32, seed: int = 0) -> Any:
    """A model with its layers in a list."""
    layer = lambda i: {
        "b": values((8,), dtype, seed + i) * 4**-i,
        "w": values((8, 16), dtype, seed + i) * 4**-i,
    }
    return {
        "emb": values((16, 8), dtype, seed),
        "layers": [layer(i) for i in range(LAYERS)],
        "scale": values((), dtype, seed),
    }


def stacked(tree: Any, axis: int) -> Any:
    """The same model with its layers stacked on an axis, vectors too."""
    stack = lambda *leaves: jnp.stack(leaves, axis)
    return {**tree, "layers": jax.tree.map(stack, *tree["layers"])}


def one_layer(tree: Any) -> Any:
    """What is seen of the model at a time."""
    return {**tree, "layers": tree["layers"][0]}


def sparse_gradients(params: Any, seed: int) -> Any:
    """Gradients for an unrolled model, with rows of zeros in one layer."""
    grads = unrolled(params["scale"].dtype, seed)
    grads["layers"][1]["w"] = grads["layers"][1]["w"].at[2:4].set(0)
    grads["emb"] = grads["emb"].at[5].set(0)
    return grads


def share_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets layer i of a list have the random words of layer i of a stack."""
    usual = counter_hash.leaf_words

    def word(key: Any, path: str) -> Any:
        number = re.search(r"layers[/_](\d+)/", path)
        if number is None:
            return usual(key, [path])
        whole = path.replace(number[0], "layers/")
        layer = layers.Layer(jnp.int32(int(number[1])), LAYERS)
        with layers.one_layer_seen({whole: layer}):
            return usual(key, [whole])

    words = lambda key, paths: sum((word(key, path) for path in paths), ())
    for module in ("dropout", "magma", "round_stochastically"):
        there = sys.modules[f"optaxtricks.transforms.{module}"]
        monkeypatch.setattr(there, "leaf_words", words)
