"""A small language model: the next word from the words before it."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from optaxtricks.nn import half_swap

Params = dict[str, Any]
Tying = Literal["none", "plain", "half_swap"]

INIT_SCALE = 0.02


def init(
    key: jax.Array, *, vocabulary: int, width: int, context: int, tying: Tying = "none"
) -> Params:
    """Fresh parameters; tied models have no `output`."""
    normal = lambda key, shape, scale: scale * jax.random.normal(key, shape)
    keys = jax.random.split(key, 6)
    params = {
        "embedding": normal(keys[0], (vocabulary, width), INIT_SCALE),
        "mix": {
            "taps": normal(keys[1], (context, width), context**-0.5),
            "kernel": normal(keys[2], (width, width), width**-0.5),
        },
        "mlp": {
            "up": normal(keys[3], (width, 4 * width), width**-0.5),
            "down": normal(keys[4], (4 * width, width), (4 * width) ** -0.5),
        },
        "norms": {name: jnp.ones(width) for name in ("mix", "mlp", "final")},
    }
    if tying == "none":
        params["output"] = normal(keys[5], (vocabulary, width), INIT_SCALE)
    return params


def loss(params: Params, windows: jax.Array, *, tying: Tying = "none") -> jax.Array:
    """Mean cross-entropy, in nats, of each window's last word given the others.

    The softmax is over the whole vocabulary. The layers are those of a pre-norm
    transformer, a causal convolution standing for attention.
    """
    context, target = windows[:, :-1], windows[:, -1]
    x = params["embedding"][context]
    mix, mlp, norms = params["mix"], params["mlp"], params["norms"]
    mixed = jnp.einsum("ncd,cd->nd", _normalise(x, norms["mix"]), mix["taps"])
    h = x[:, -1] + mixed @ mix["kernel"]
    h = h + jax.nn.gelu(_normalise(h, norms["mlp"]) @ mlp["up"]) @ mlp["down"]
    feature = _normalise(h, norms["final"])
    if tying == "half_swap":
        feature = half_swap(feature)
    table = params["output"] if tying == "none" else params["embedding"]
    logits = feature @ table.T
    chosen = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
    return (jax.nn.logsumexp(logits, axis=1) - chosen).mean()


def _normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    size = jnp.square(x).mean(axis=-1, keepdims=True)
    shape = (1,) * (x.ndim - 1) + scale.shape
    return x * jax.lax.rsqrt(size + 1e-8) * scale.reshape(shape)
