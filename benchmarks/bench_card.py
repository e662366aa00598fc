"""Optimizer steps on one accelerator, beside the time that memory alone would take.

A step must read parameters, gradient and state once and write parameters and state
once: `least MB`. Over the bandwidth of a large copy on the same card, measured in the
same run, this is the floor, and `floor / time` is 1 for a step that waits for nothing
but memory. Steps are queued without waiting, so that the time is the device's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

from . import harness
from .bench_rows import RowStep, dense, sparse

WINDOW = 4
QUEUED = 8  # a multiple of the window
# Stacked layers: few leaves, so that starting kernels is no part of the time.
TREES = {
    "tiny": {"emb": (64, 32)} | harness.stacked_shapes(layers=2, width=32, axis=0),
    "full": {"emb": (32000, 1024)}
    | harness.stacked_shapes(layers=12, width=1024, axis=0),
}
ROWS = {"tiny": 128, "full": 524_288}


def sides() -> dict[str, tuple[optax.GradientTransformation, Any]]:
    """Each optimizer, and the dtype of parameters and gradients."""
    adamw, lion = optax.adamw(1e-3), ot.lion(1e-4)
    multi = optax.MultiSteps(adamw, WINDOW).gradient_transformation()
    half = {
        "optax.lion": optax.lion(1e-4),
        "lion": lion,
        "lion, round_stochastically": optax.chain(lion, ot.round_stochastically(key=0)),
        "lion, float32 momentum, round_stochastically": optax.chain(
            ot.lion(1e-4, mu_dtype=jnp.float32), ot.round_stochastically(key=0)
        ),
    }
    full = {
        "scale and add": optax.sgd(1e-4),
        "adamw": adamw,
        "gradient_dropout, adamw": optax.chain(ot.gradient_dropout(0.3, key=0), adamw),
        "adamw, update_dropout": optax.chain(adamw, ot.update_dropout(0.3, key=0)),
        "monitor_groups, adamw": optax.chain(ot.monitor_groups(_one_label), adamw),
        "optax.lion": optax.lion(1e-4),
        "lion": lion,
        "per_layer(tiger)": ot.per_layer(ot.tiger(1e-3), "^layers/"),
        f"per_layer(tiger), window of {WINDOW}": ot.per_layer(
            ot.tiger(1e-3, accumulate_steps=WINDOW), "^layers/"
        ),
        f"MultiSteps(adamw, {WINDOW})": multi,
        "per_layer(magma(lion))": ot.per_layer(ot.magma(lion, key=0), "^layers/"),
        "lion, ema_params": optax.chain(lion, ot.ema_params(0.999)),
    }
    return {name: (tx, jnp.float32) for name, tx in full.items()} | {
        f"bfloat16: {name}": (tx, jnp.bfloat16) for name, tx in half.items()
    }


def _one_label(tree: Any) -> Any:
    return jax.tree.map(lambda _: "all", tree)


class QueuedStep:
    """So many optimizer steps, one behind the other, with donated buffers."""

    def __init__(self, tx: Any, shapes: Any, dtype: Any = jnp.float32):
        rng = np.random.default_rng(0)
        block = jnp.asarray(rng.standard_normal(1 << 20, np.float32), dtype)
        draw = lambda shape: jnp.resize(block, shape)
        self.params = {path: draw(shape) for path, shape in shapes.items()}
        self.grads = {path: draw(shape) for path, shape in shapes.items()}
        self.state = jax.jit(tx.init)(self.params)
        jitted = jax.jit(harness.training_step(tx), donate_argnums=(0, 1))
        self.step = jitted.lower(self.params, self.state, self.grads).compile()
        held = (self.params, self.state)
        self.least = 2 * harness.tree_bytes(held) + harness.tree_bytes(self.grads)

    def __call__(self) -> Any:
        for _ in range(QUEUED):
            self.params, self.state = self.step(self.params, self.state, self.grads)
        return self.params


def copy_bandwidth(entries: int) -> float:
    """Bytes a second of a copy, read and written."""
    source = jnp.arange(entries, dtype=jnp.float32)
    copy = jax.jit(lambda x: x + np.float32(1), donate_argnums=0)

    def side() -> Any:
        nonlocal source
        for _ in range(QUEUED):
            source = copy(source)
        return source

    seconds = harness.alternate({"copy": side})["copy"] / QUEUED
    return 2 * 4 * entries / seconds


def measured(step: QueuedStep, windows: int) -> float:
    """Median seconds of one step."""
    return harness.alternate({"": step}, windows=windows)[""] / QUEUED


def main(argv: Sequence[str] | None = None) -> None:
    """Measures each side alone, so that the card holds one at a time."""
    options = harness.arguments(__doc__, argv)
    size, windows = options.size, 3 if options.size == "tiny" else 15
    bandwidth = copy_bandwidth(1 << (12 if size == "tiny" else 28))
    rows = [{"side": "copy", "GB/s": bandwidth / 1e9}]

    def record(name: str, step: Any) -> None:
        seconds = measured(step, windows)
        row = {"side": name, "ms": 1e3 * seconds}
        if hasattr(step, "least"):
            row |= {
                "least MB": step.least / 1e6,
                "floor / time": step.least / bandwidth / seconds,
                "temp MB": harness.temp_bytes(step.step) / 1e6,
            }
        rows.append(row)
        print(row, flush=True)

    transforms = sides()
    for name, (tx, dtype) in transforms.items():
        record(name, QueuedStep(tx, TREES[size], dtype))
    for name, step in row_steps(size).items():
        record(name, step)
    many = harness.SIZES[size]
    for name in ("adamw", "gradient_dropout, adamw", "lion"):
        step = QueuedStep(transforms[name][0], many)
        record(f"{len(many)} leaves: {name}", step)
    harness.publish("bench_card", rows, options)


def row_steps(size: str) -> dict[str, Callable[[], Any]]:
    """Adam on a table, from looked-up rows alone and from a dense gradient."""
    adam, count = optax.adam(1e-3), ROWS[size]
    frozen = ot.lazy_rows(adam, tables="table", moments="freeze")
    steps = {
        f"RowSparse adam, {count} rows": RowStep(frozen, sparse, count, size),
        f"dense adam, {count} rows": RowStep(adam, dense, count, size),
    }
    return {name: _queued(step) for name, step in steps.items()}


def _queued(step: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: [step() for _ in range(QUEUED)][-1]


if __name__ == "__main__":
    main()
