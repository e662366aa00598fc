"""One residual model in every form in which people write its layers down.

Its numbers are a *plain* tree of NumPy arrays, whose layers are a list. The parameters
of every form are packed from it and unpacked to it again.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

ROWS, WIDTH, HEADS, LAYERS, STEPS = 16, 8, 2, 4, 3
HEAD_SIZE = WIDTH // HEADS
# Keys and queries are normalised: without it the loss does not depend on the bias of
# the keys, whose gradient then is mere rounding, and its sign chance.
ATTENTION = {"num_heads": HEADS, "normalize_qk": True}
REST = ["embed/embedding", "head/bias", "head/kernel"]
LAYER = [
    *("attention/key/bias", "attention/key/kernel", "attention/key_ln/scale"),
    *("attention/out/bias", "attention/out/kernel"),
    *("attention/query/bias", "attention/query/kernel", "attention/query_ln/scale"),
    *("attention/value/bias", "attention/value/kernel"),
    *("dense/bias", "dense/kernel", "norm/scale"),
]


def plain_params(dtype: Any = jnp.float32) -> Any:
    """Parameters with a list of layers, all at the size that they have in training."""
    rng = np.random.default_rng(0)

    def leaf(*shape: int, size: float = 0.35, middle: float = 0.0) -> Any:
        return rng.normal(middle, size, shape).astype(dtype)

    def dense(*shape: int, fed: int = 1) -> Any:
        return {"bias": leaf(*shape[fed:], size=0.1), "kernel": leaf(*shape)}

    def scale(width: int) -> Any:
        return {"scale": leaf(width, size=0.2, middle=1.0)}

    def layer() -> Any:
        inward = {k: dense(WIDTH, HEADS, HEAD_SIZE) for k in ("key", "query", "value")}
        norms = {k: scale(HEAD_SIZE) for k in ("key_ln", "query_ln")}
        out = {"out": dense(HEADS, HEAD_SIZE, WIDTH, fed=2)}
        attention = {**inward, **norms, **out}
        return {
            "attention": attention,
            "dense": dense(WIDTH, WIDTH),
            "norm": scale(WIDTH),
        }

    return {
        "embed": {"embedding": leaf(ROWS, WIDTH, size=1.0)},
        "head": dense(WIDTH, ROWS),
        "layers": [layer() for _ in range(LAYERS)],
    }


def batch(step: int) -> tuple[jax.Array, jax.Array]:
    """Texts that use some rows of the table, others at each step, and what follows."""
    rng = np.random.default_rng([1, step])
    rows = rng.permutation(ROWS)[:10]
    return jnp.asarray(rng.choice(rows, (4, 6))), jnp.asarray(rng.choice(rows, (4, 6)))


def loss(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean cross entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    return losses.mean()


@dataclasses.dataclass(frozen=True)
class Form:
    """Where a form keeps its layers.

    Attributes:
      axis: the layer axis of the stacks below ``layers``; None if layers are a list.
      flat: whether that list is spelled ``layers_0`` and so on beside the rest, and not
        a list below ``layers``.
    """

    axis: int | None
    flat: bool = False

    @property
    def stacks(self) -> dict[str, int] | None:
        """What `stacked=` takes."""
        return None if self.axis is None else {"^layers/": self.axis}

    def pack(self, plain: Any) -> Any:
        """A tree of this form, of JAX arrays, from a plain one."""
        rest = {key: plain[key] for key in plain if key != "layers"}
        layers = plain["layers"]
        if self.axis is not None:
            stack = lambda *leaves: np.stack(leaves, self.axis)
            found = {"layers": jax.tree.map(stack, *layers)}
        elif self.flat:
            found = {f"layers_{i}": layer for i, layer in enumerate(layers)}
        else:
            found = {"layers": dict(enumerate(layers))}
        return jax.tree.map(jnp.asarray, {**rest, **found})

    def unpack(self, tree: Any) -> Any:
        """The plain tree of a tree of this form."""
        tree = jax.tree.map(np.asarray, tree)
        take = lambda i: lambda leaf: np.take(leaf, i, self.axis)
        if self.axis is not None:
            layer = lambda i: jax.tree.map(take(i), tree["layers"])
        elif self.flat:
            layer = lambda i: tree[f"layers_{i}"]
        else:
            layer = lambda i: tree["layers"][i]
        rest = {key: tree[key] for key in ("embed", "head")}
        return {**rest, "layers": [layer(i) for i in range(LAYERS)]}


class LinenLayer(nn.Module):
    """Attention behind a norm, and a dense layer, each added to what came in."""

    @nn.compact
    def __call__(self, h: Any, _: Any = None) -> tuple[Any, None]:
        x = nn.LayerNorm(use_bias=False, name="norm")(h)
        attention: Any = nn.MultiHeadDotProductAttention(**ATTENTION, name="attention")
        h = h + attention(x)
        return h + nn.Dense(WIDTH, name="dense")(jnp.tanh(h)), None


class LinenNet(nn.Module):
    """Layers in a list, or in `nn.scan` over some axis of their parameters."""

    axis: int | None = None
    stack: str | None = "layers"

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        h = nn.Embed(ROWS, WIDTH, name="embed")(tokens)
        if self.axis is None:
            for i in range(LAYERS):
                h, _ = LinenLayer(name=f"layers_{i}")(h)
        else:
            scan: Any = nn.scan(
                LinenLayer,
                variable_axes={"params": self.axis},
                split_rngs={"params": True},
                length=LAYERS,
            )
            h, _ = scan(name=self.stack)(h, None)
        return nn.Dense(ROWS, name="head")(h)


class NnxLayer(nnx.Module):
    """The same layer in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(WIDTH, use_bias=False, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            in_features=WIDTH, decode=False, rngs=rngs, **ATTENTION
        )
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, h: Any) -> Any:
        h = h + self.attention(self.norm(h))
        return h + self.dense(jnp.tanh(h))


class NnxNet(nnx.Module):
    """Layers one after another, or side by side and averaged; in a list or stacked."""

    def __init__(self, *, stacked: bool, averaged: bool, rngs: nnx.Rngs):
        self.stacked, self.averaged = stacked, averaged
        self.embed = nnx.Embed(ROWS, WIDTH, rngs=rngs)
        if stacked:
            make = nnx.split_rngs(splits=LAYERS)(nnx.vmap(NnxLayer))
            self.layers: Any = make(rngs)
        else:
            self.layers = nnx.List([NnxLayer(rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, ROWS, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        h = self.embed(tokens)
        one: Callable[[Any, Any], Any] = lambda layer, h: layer(h)
        if self.averaged and self.stacked:
            h = nnx.vmap(one, in_axes=(0, None))(self.layers, h).mean(axis=0)
        elif self.averaged:
            h = jnp.stack([layer(h) for layer in self.layers]).mean(axis=0)
        elif self.stacked:
            scan = nnx.scan(one, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
            h = scan(self.layers, h)
        else:
            for layer in self.layers:
                h = layer(h)
        return self.head(h)


def hand_net(axis: int, params: Any, tokens: jax.Array) -> jax.Array:
    """The network as a function of a dict of stacks; its layers are Linen's."""
    h = params["embed"]["embedding"][tokens]
    layers = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), params["layers"])
    one = lambda h, layer: LinenLayer().apply({"params": layer}, h)
    h, _ = jax.lax.scan(one, h, layers)
    head: Any = nn.Dense(ROWS).apply({"params": params["head"]}, h)
    return head
