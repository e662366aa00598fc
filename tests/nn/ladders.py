"""A small ladder in NNX and in Linen, its oracle, and taps for it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import optaxtricks as ot

WIDTH, LAYERS, REDUCTION = 12, 4, 3
SIDE = WIDTH // REDUCTION
SIZES = {"width": WIDTH, "num_layers": LAYERS, "reduction": REDUCTION}


class NnxBlock(nnx.Module):
    """A residual layer with a shift, dropout, and a weight for the whole."""

    def __init__(self, width: int, layer: int, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(width, width, rngs=rngs, promote_dtype=_follow)
        self.dropout = nnx.Dropout(0.5)

    def __call__(
        self, h: Any, shift: Any = 0.0, *, weight: Any = 1.0, rngs: Any = None
    ) -> Any:
        out = jnp.tanh(self.dense(h))
        if rngs is not None:
            out = self.dropout(out, rngs=rngs)
        return h + jnp.asarray(weight, h.dtype) * out + jnp.asarray(shift, h.dtype)


class LinenBlock(nn.Module):
    """The same in Linen."""

    width: int

    @nn.compact
    def __call__(
        self, h: Any, shift: Any = 0.0, *, weight: Any = 1.0, dropped: bool = False
    ) -> Any:
        dense = nn.Dense(self.width, name="dense", promote_dtype=_follow_all)
        out = nn.Dropout(0.5, deterministic=not dropped)(jnp.tanh(dense(h)))
        return h + jnp.asarray(weight, h.dtype) * out + jnp.asarray(shift, h.dtype)


def _follow(arrays: Any, dtype: Any = None, inexact: bool = True) -> Any:
    return [x.astype(arrays[0].dtype) for x in arrays]


def _follow_all(*arrays: Any, dtype: Any = None, inexact: bool = True) -> Any:
    return _follow(arrays)


def linen_block(width: int, layer: int) -> nn.Module:
    """A factory for a Linen ladder."""
    return LinenBlock(width)


def nnx_ladder(block: Any = NnxBlock, **options: Any) -> Any:
    """An NNX ladder; `options` replace the sizes of this file."""
    known: dict[str, Any] = {"rngs": nnx.Rngs(0), **SIZES, **options}
    return ot.nn.SideLadder(block, **known)


def linen_ladder(block: Any = linen_block, **options: Any) -> Any:
    """A Linen ladder; `options` replace the sizes of this file."""
    known: dict[str, Any] = {**SIZES, **options}
    return ot.nn.linen.SideLadder(block, **known)


def taps(
    dtype: Any = jnp.float32, shape: tuple[int, ...] = (2, 5), seed: int = 0
) -> Any:
    """What a backbone leaves: the embedding and the output of every layer."""
    rng = np.random.default_rng(seed)
    return [
        jnp.asarray(rng.normal(size=(*shape, WIDTH)), dtype) for _ in range(LAYERS + 1)
    ]


def params_of(ladder: Any) -> Any:
    """Parameters of an NNX ladder as Linen has them."""
    return nnx.to_pure_dict(nnx.state(ladder, nnx.Param))


def randomize(ladder: Any, seed: int = 1) -> Any:
    """The NNX ladder with other parameters, gates included."""
    rng = np.random.default_rng(seed)
    state = nnx.state(ladder, nnx.Param)
    other = jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), state
    )
    nnx.update(ladder, other)
    return ladder


def oracle(
    params: Any,
    taps: Any,
    keep: Any = range(LAYERS),
    gate: str = "scalar",
    gate_value: float = 0.0,
    merge: str | None = "gated",
) -> np.ndarray:
    """The ladder in NumPy, float64, one position at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    flat = [np.asarray(x, np.float64).reshape(-1, WIDTH) for x in taps]
    rows = []
    for at in range(len(flat[0])):
        x = [tap[at] for tap in flat]
        h = _linear(p["embed_down"], x[0])
        for rung, layer in enumerate(keep):
            low = _linear(p[f"down_{layer}"], x[layer + 1])
            if gate == "sum":
                h = h + low
            else:
                fixed = gate == "constant"
                mu = gate_value if fixed else 1 / (1 + np.exp(-p["gate"][rung] / 0.1))
                h = mu * h + (1 - mu) * low
            h = h + np.tanh(_linear(p[f"block_{layer}"]["dense"], h))
        if merge is not None:
            h = _linear(p["up"], h)
        if merge == "gated":
            h = p["top_gate"] * x[-1] + (1 - p["top_gate"]) * h
        rows.append(h)
    return np.stack(rows).reshape(*taps[0].shape[:-1], -1)


def _linear(layer: Any, x: np.ndarray) -> np.ndarray:
    return x @ layer["kernel"] + layer["bias"]
