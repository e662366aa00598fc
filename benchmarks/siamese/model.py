"""Encoder, projector and predictor, small ones, and the losses of SimSiam and BYOL."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]

EPSILON = 1e-3


def init(key: jax.Array, *, pixels: int, width: int, feature: int) -> Params:
    """Fresh parameters.

    The encoder's layers are pixels -> width -> feature, those of the projector
    feature -> feature -> feature, of the predictor feature -> feature / 4 -> feature.
    """
    widths = {
        "encoder": (pixels, width, feature),
        "projector": (feature, feature, feature),
        "predictor": (feature, feature // 4, feature),
    }
    shapes = {part: list(itertools.pairwise(sizes)) for part, sizes in widths.items()}
    # One draw for all: each is a function of its own to compile.
    total = sum(math.prod(shape) for pairs in shapes.values() for shape in pairs)
    numbers, start = jax.random.normal(key, (total,)), 0
    params: Params = {part: [] for part in shapes}
    for part, pairs in shapes.items():
        for rows, columns in pairs:
            kernel = numbers[start : start + rows * columns].reshape(rows, columns)
            start += rows * columns
            params[part].append(
                {
                    "kernel": kernel * (2 / rows) ** 0.5,
                    "scale": jnp.ones(columns),
                    "bias": jnp.zeros(columns),
                }
            )
    return params


def encode(params: Params, x: jax.Array, *, reference: int | None = None) -> jax.Array:
    """The features, on which the probes work."""
    for layer in params["encoder"]:
        x = jax.nn.relu(_normalised(layer, x @ layer["kernel"], reference))
    return x


def project(params: Params, x: jax.Array, *, reference: int | None = None) -> jax.Array:
    """The representation that the losses compare; its last layer is linear."""
    first, last = params["projector"]
    h = encode(params, x, reference=reference)
    h = jax.nn.relu(_normalised(first, h @ first["kernel"], reference))
    return h @ last["kernel"] + last["bias"]


def predict(params: Params, z: jax.Array) -> jax.Array:
    """The predictor's answer to a representation; its last layer is linear."""
    first, last = params["predictor"]
    h = jax.nn.relu(_normalised(first, z @ first["kernel"], None))
    return h @ last["kernel"] + last["bias"]


def loss(
    online: Params, target: Params, views: tuple[jax.Array, jax.Array], *, stop: bool
) -> jax.Array:
    """Minus the cosine of prediction and the other view's representation, both ways.

    With `target` equal to `online` it is SimSiam's; with a moving average of `online`
    it is BYOL's, up to a factor and a constant. `stop` keeps gradients out of the
    representation that is predicted.
    """
    # Each view is a batch of its own to the normalisation.
    projected = [project(target, x) for x in views]
    if stop:
        projected = jax.lax.stop_gradient(projected)
    predicted = [predict(online, project(online, x)) for x in views]
    cosines = [_cosine(p, z) for p, z in zip(predicted, projected[::-1], strict=True)]
    return -jnp.stack(cosines).mean()


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(_unit(a) * _unit(b), axis=1)


def _unit(x: jax.Array) -> jax.Array:
    """Rows of length 1, or less near 0: a row whose hidden units all rest is 0, and
    would get a gradient without bound."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=1, keepdims=True) + EPSILON)


def _normalised(layer: Params, x: jax.Array, reference: int | None) -> jax.Array:
    """Batch normalisation, by the statistics of the first `reference` rows or all."""
    known = x[:reference]
    mean, variance = known.mean(axis=0), known.var(axis=0)
    unit = (x - mean) * jax.lax.rsqrt(variance + EPSILON)
    return unit * layer["scale"] + layer["bias"]
