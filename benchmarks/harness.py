"""What every benchmark shares: fair timing, the environment line, JSON and tables.

Two sides are compared in one process, window by window in turn, after warm-up, with
donated buffers, by medians: what disturbs the machine then disturbs both.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

Side = Callable[[], Any]


def environment() -> dict[str, Any]:
    """Where a figure was measured."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{
            name: version(name)
            for name in ("jax", "jaxlib", "optax", "numpy", "optaxtricks")
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine(where: Mapping[str, Any]) -> str:
    """The name of an `environment`: its accelerator, or its CPU's cores."""
    platform_name, kind = where["device"].split(": ", 1)
    return f"{where['cores']}-core CPU" if platform_name == "cpu" else kind


def version(name: str) -> str | None:
    """Of an installed package; None if it is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None  # run from a checkout, not installed


def alternate(
    sides: Mapping[str, Side], *, windows: int = 15, warm_up: int = 2
) -> dict[str, float]:
    """Median seconds a call of each side, the sides taking turns in every window."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for window in range(warm_up + windows):
        for name, side in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(side())
            if window >= warm_up:
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in samples.items()}


def training_step(tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """From parameters, state and gradients, the next parameters and state."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


class TrainStep:
    """A compiled optimizer step with donated parameters and state; a call runs it."""

    def __init__(
        self,
        tx: optax.GradientTransformation,
        shapes: Mapping[str, Any],
        dtype: Any = jnp.float32,
    ):
        rng = np.random.default_rng(0)
        draw = lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
        self.params = {path: draw(shape) for path, shape in shapes.items()}
        self.grads = {path: draw(shape) for path, shape in shapes.items()}
        self.state = tx.init(self.params)
        jitted = jax.jit(training_step(tx), donate_argnums=(0, 1))
        self.compiled = jitted.lower(self.params, self.state, self.grads).compile()

    def __call__(self) -> Any:
        self.params, self.state = self.compiled(self.params, self.state, self.grads)
        return self.params

    @property
    def temp_bytes(self) -> int:
        """Temporary memory of the compiled step, as XLA reports it."""
        return temp_bytes(self.compiled)


def compile_seconds(tx: optax.GradientTransformation, params: Any) -> float:
    """Seconds from a Python step function to a compiled one."""
    state = jax.jit(tx.init)(params)
    jax.clear_caches()
    start = time.perf_counter()
    jax.jit(training_step(tx), donate_argnums=(0, 1)).lower(
        params, state, params
    ).compile()
    return time.perf_counter() - start


def temp_bytes(compiled: Any) -> int:
    """Temporary memory of a compiled function, as XLA reports it."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def transformer_shapes(
    *, layers: int, width: int, vocabulary: int
) -> dict[str, tuple[int, ...]]:
    """Parameter shapes of a BERT-like encoder, by path."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings/token": (vocabulary, width),
        "embeddings/position": (512, width),
    }
    for i in range(layers):
        for name in ("query", "key", "value", "output"):
            shapes[f"layer/{i}/{name}/kernel"] = (width, width)
            shapes[f"layer/{i}/{name}/bias"] = (width,)
        for name, (rows, columns) in {
            "up": (width, 4 * width),
            "down": (4 * width, width),
        }.items():
            shapes[f"layer/{i}/{name}/kernel"] = (rows, columns)
            shapes[f"layer/{i}/{name}/bias"] = (columns,)
        for name in ("norm_1", "norm_2"):
            shapes[f"layer/{i}/{name}/scale"] = (width,)
            shapes[f"layer/{i}/{name}/bias"] = (width,)
    return shapes


def stacked_shapes(*, layers: int, width: int, axis: int) -> dict[str, tuple[int, ...]]:
    """Its layers' shapes with all layers in one leaf, counted on an axis."""
    one = transformer_shapes(layers=1, width=width, vocabulary=1)
    return {
        path.replace("layer/0/", "layers/"): (*shape[:axis], layers, *shape[axis:])
        for path, shape in one.items()
        if path.startswith("layer/")
    }


SIZES = {
    "tiny": transformer_shapes(layers=1, width=32, vocabulary=128),
    "full": transformer_shapes(layers=6, width=768, vocabulary=32000),
}
"""`full` has 67.4 million parameters."""


def parser(description: str | None) -> argparse.ArgumentParser:
    """The flags every benchmark takes: `--size` and `--out`."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--size", choices=("tiny", "full"), default="full")
    result.add_argument("--out", type=Path, help="folder for the JSON result")
    return result


def arguments(
    description: str | None, argv: Sequence[str] | None
) -> argparse.Namespace:
    """Those flags, as given."""
    return parser(description).parse_args(argv)


def publish(name: str, rows: Sequence[Mapping[str, Any]], options: Any) -> None:
    """Prints the environment and the rows; writes `name`.json to `--out` if given."""
    where = environment()
    show(rows, where)
    write(name, rows, options, where)


def show(rows: Sequence[Mapping[str, Any]], where: Mapping[str, Any]) -> None:
    """Prints an environment and a table of rows."""
    print("  ".join(f"{key} {value}" for key, value in where.items()))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[_cell(row.get(key, "")) for key in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)))
    sys.stdout.flush()


def write(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    options: Any,
    where: Mapping[str, Any],
) -> None:
    """Writes `name`.json to `--out` if given."""
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        record = {"name": name, "size": options.size, "environment": where}
        text = json.dumps({**record, "rows": list(rows)}, indent=2)
        (options.out / f"{name}.json").write_text(text + "\n")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
