"""What `bench_card` measures, the most important first."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

from . import harness, masks
from .bench_rows import RowStep, dense, sparse

WINDOW = 4
QUEUED = 8  # a multiple of the window
# Layers in stacks: few leaves, so that starting kernels is no part of the time. A tiny
# tree is one leaf, for what a leaf costs there is compiling.
TREES: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    "stacks": {
        "tiny": {"layers/kernel": (2, 16, 32)},
        "full": {"emb": (32000, 1024)}
        | harness.stacked_shapes(layers=12, width=1024, axis=0),
    },
    "leaves": {
        "tiny": {"kernel": (32, 32)},
        "full": harness.SIZES["full"],
    },
}
ROWS = {"tiny": (64, 128), "full": (131_072, 524_288)}


def _noise(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The same few normal numbers again and again: quick to make, and none is zero."""
    size = math.prod(shape)
    block = np.random.default_rng(0).standard_normal(1 << 16, np.float32)
    repeated = jnp.tile(jnp.asarray(block, dtype), -(-size // block.size))
    return repeated[:size].reshape(shape)


class QueuedStep:
    """So many optimizer steps, one behind the other, with donated buffers.

    Attributes:
      least: bytes that a step must move: parameters and state once in and once out,
        the gradient once in. A step that leaves entries alone may do with less.
    """

    def __init__(self, tx: Any, shapes: Any, dtype: Any):
        draw = lambda: {path: _noise(shape, dtype) for path, shape in shapes.items()}
        self.params, self.grads = draw(), draw()
        self.state = tx.init(self.params)
        jitted = jax.jit(harness.training_step(tx), donate_argnums=(0, 1))
        self.compiled = jitted.lower(self.params, self.state, self.grads).compile()
        held = (self.params, self.state)
        self.least = 2 * harness.tree_bytes(held) + harness.tree_bytes(self.grads)

    def __call__(self) -> Any:
        for _ in range(QUEUED):
            self.params, self.state = self.compiled(self.params, self.state, self.grads)
        return self.params


class QueuedRows:
    """So many steps of a table from the rows that were looked up in it."""

    def __init__(self, tx: Any, gradient: Callable[..., Any], rows: int, size: str):
        self.step = RowStep(tx, gradient, rows, size)
        self.state, self.compiled = self.step.state, self.step.compiled

    def __call__(self) -> Any:
        return [self.step() for _ in range(QUEUED)][-1]


Build = Callable[[str], QueuedStep | QueuedRows]


@dataclasses.dataclass(frozen=True)
class Side:
    """A step to measure.

    Attributes:
      name: in the result.
      build: from "tiny" or "full", the step with all that it needs, on the device.
      base: the earlier side by whose time its own is divided.
      promise: the one in `goals.py` that it belongs to.
    """

    name: str
    build: Build
    base: str | None = None
    promise: str | None = None


def _on(tx: Any, tree: str = "stacks", dtype: Any = jnp.float32) -> Build:
    return lambda size: QueuedStep(tx, TREES[tree][size], dtype)


def _half(tx: Any) -> Build:
    return _on(tx, dtype=jnp.bfloat16)


def _compact(inner: Any, kept: float, draw: Any = masks.entries) -> Build:
    def build(size: str) -> QueuedStep:
        shapes = TREES["stacks"][size]
        tx = ot.compact_entries(inner, draw(shapes, kept))
        return QueuedStep(tx, shapes, jnp.float32)

    return build


def _table(tx: Any, gradient: Callable[..., Any], which: int) -> Build:
    return lambda size: QueuedRows(tx, gradient, ROWS[size][which], size)


def _dropout(inner: Any, **options: Any) -> Any:
    return optax.chain(ot.gradient_dropout(0.3, key=0, **options), inner)


def _rounded(inner: Any) -> Any:
    return optax.chain(inner, ot.round_stochastically(key=0))


def _per_layer(inner: Any) -> Any:
    return ot.per_layer(inner, "^layers/")


def _one_label(tree: Any) -> Any:
    return jax.tree.map(lambda _: "all", tree)


_adamw, _lion, _tiger = optax.adamw(1e-3), ot.lion(1e-4), ot.tiger(1e-3)
_window = ot.tiger(1e-3, accumulate_steps=WINDOW)
_multi = optax.MultiSteps(_adamw, WINDOW).gradient_transformation()
_magma_lion, _magma_adamw = ot.magma(_lion, key=0), ot.magma(_adamw, key=0)
_averaged = optax.chain(_lion, ot.ema_params(0.999))
_monitored = optax.chain(ot.monitor_groups(_one_label), _adamw)
_update_dropout = optax.chain(_adamw, ot.update_dropout(0.3, key=0))
_gaussian = _dropout(_adamw, distribution="gaussian")
_wide_lion = ot.lion(1e-4, mu_dtype=jnp.float32)
_adam = optax.adam(1e-3)
_lazy = ot.lazy_rows(_adam, tables="table", moments="freeze")

SIDES = (
    Side("scale and add", _on(optax.sgd(1e-4))),
    Side("adamw", _on(_adamw)),
    Side("gradient_dropout, adamw", _on(_dropout(_adamw)), "adamw", "P1"),
    Side("optax.lion", _on(optax.lion(1e-4))),
    Side("lion", _on(_lion), "optax.lion", "P2"),
    Side(f"MultiSteps(adamw, {WINDOW})", _on(_multi)),
    Side(
        f"tiger, window of {WINDOW}", _on(_window), f"MultiSteps(adamw, {WINDOW})", "P3"
    ),
    Side("dense adam, a table", _table(_adam, dense, 0)),
    Side(
        "RowSparse adam, that table",
        _table(_lazy, sparse, 0),
        "dense adam, a table",
        "P4",
    ),
    Side(
        "RowSparse adam, four times the rows",
        _table(_lazy, sparse, 1),
        "RowSparse adam, that table",
        "P4 flat",
    ),
    Side("compact_entries(adamw), 20.0%", _compact(_adamw, 0.2), "adamw", "P6"),
    Side(
        "compact_entries(adamw), 20.0% in tiles",
        _compact(_adamw, 0.2, masks.tiles),
        "adamw",
    ),
    Side("compact_entries(adamw), 0.5%", _compact(_adamw, 0.005), "adamw", "P6 sparse"),
    Side("tiger", _on(_tiger), "lion"),
    Side("per_layer(tiger)", _on(_per_layer(_tiger)), "tiger"),
    Side(
        f"per_layer(tiger), window of {WINDOW}",
        _on(_per_layer(_window)),
        f"tiger, window of {WINDOW}",
    ),
    Side("magma(lion)", _on(_magma_lion), "lion"),
    Side("magma(adamw)", _on(_magma_adamw), "adamw"),
    Side("per_layer(magma(lion))", _on(_per_layer(_magma_lion)), "magma(lion)"),
    Side("shrink_nonfinite(lion)", _on(ot.shrink_nonfinite(_lion)), "lion"),
    Side("gaussian dropout, adamw", _on(_gaussian), "adamw"),
    Side("bfloat16: adamw", _half(_adamw), "adamw"),
    Side(
        "bfloat16: gradient_dropout, adamw", _half(_dropout(_adamw)), "bfloat16: adamw"
    ),
    Side("bfloat16: gaussian dropout, adamw", _half(_gaussian), "bfloat16: adamw"),
    Side("bfloat16: optax.lion", _half(optax.lion(1e-4)), "optax.lion"),
    Side("bfloat16: lion", _half(_lion), "bfloat16: optax.lion"),
    Side(
        "bfloat16: lion, round_stochastically", _half(_rounded(_lion)), "bfloat16: lion"
    ),
    Side(
        "bfloat16: lion, float32 momentum, round_stochastically",
        _half(_rounded(_wide_lion)),
        "bfloat16: lion",
    ),
    Side("monitor_groups, adamw", _on(_monitored), "adamw"),
    Side("adamw, update_dropout", _on(_update_dropout), "adamw"),
    Side("per_layer(dropout, adamw)", _on(_per_layer(_dropout(_adamw))), "adamw"),
    Side("lion, ema_params", _on(_averaged), "lion"),
    Side("many leaves: adamw", _on(_adamw, "leaves")),
    Side(
        "many leaves: gradient_dropout, adamw",
        _on(_dropout(_adamw), "leaves"),
        "many leaves: adamw",
        "P1",
    ),
    Side("many leaves: optax.lion", _on(optax.lion(1e-4), "leaves")),
    Side("many leaves: lion", _on(_lion, "leaves"), "many leaves: optax.lion", "P2"),
)
