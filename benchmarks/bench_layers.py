"""Steps on layers stacked in one leaf: with `per_layer`, without, and layer by layer.

Without it the optimizer takes a stack for one tensor, which is as fast but, for Tiger,
not the same. Taken apart, the layers are leaves of their own inside the step, and put
together again behind it. Compile time is measured for a list of layers as well.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import optax

import optaxtricks as ot

from . import harness

MAKE: dict[str, Callable[[], optax.GradientTransformation]] = {
    "tiger": lambda: ot.tiger(1e-3),
    "lion": lambda: ot.lion(1e-4),
    "adamw": lambda: optax.adamw(1e-3),
    "dropout + adamw": lambda: optax.chain(
        ot.gradient_dropout(0.3, key=0), optax.adamw(1e-3)
    ),
}


def taken_apart(inner: Any, axis: int) -> optax.GradientTransformation:
    """Layers as leaves of their own, as one would write it by hand."""

    def apart(tree: Any) -> Any:
        return {
            path: [jnp.take(x, i, axis) for i in range(x.shape[axis])]
            for path, x in tree.items()
        }

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        out, state = inner.update(apart(updates), state, apart(params))
        return {path: jnp.stack(layers, axis) for path, layers in out.items()}, state

    return optax.GradientTransformation(
        lambda params: inner.init(apart(params)), update
    )


def steps(layers: int, width: int, axis: int, windows: int) -> list[dict[str, Any]]:
    """Time and temporary memory of a step of each optimizer."""
    shapes = harness.stacked_shapes(layers=layers, width=width, axis=axis)
    rows = []
    for name, make in MAKE.items():
        sides = {
            "bare": make(),
            "per_layer": ot.per_layer(make(), {"": axis}),
            "taken apart": taken_apart(make(), axis),
        }
        compiled = {side: harness.TrainStep(tx, shapes) for side, tx in sides.items()}
        seconds = harness.alternate(compiled, windows=windows)
        rows += [
            {
                "side": f"{name}, {side}, axis {axis}",
                "ms": 1e3 * seconds[side],
                "ratio to bare": seconds[side] / seconds["bare"],
                "temp MB": compiled[side].temp_bytes / 1e6,
            }
            for side in sides
        ]
    return rows


def compile_times(
    counts: Sequence[int], width: int, rounds: int
) -> list[dict[str, Any]]:
    """Compile time of Tiger for several numbers of layers, stacked and in a list."""
    tiger = MAKE["tiger"]
    sides: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    for count in counts:
        sides[f"compile per_layer(tiger), {count} layers"] = (
            ot.per_layer(tiger(), ""),
            harness.stacked_shapes(layers=count, width=width, axis=0),
        )
        sides[f"compile tiger on a list of {count} layers"] = (
            tiger(),
            harness.transformer_shapes(layers=count, width=width, vocabulary=8),
        )
    samples: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, (tx, shapes) in sides.items():
            params = {path: jnp.zeros(shape) for path, shape in shapes.items()}
            samples[side].append(harness.compile_seconds(tx, params))
    return [
        {"side": side, "s": statistics.median(found)} for side, found in samples.items()
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Compares steps on both layer axes, then compile times."""
    options = harness.arguments(__doc__, argv)
    tiny = options.size == "tiny"
    layers, width, windows = (3, 16, 3) if tiny else (12, 512, 15)
    rows = [row for axis in (0, 1) for row in steps(layers, width, axis, windows)]
    rows += compile_times((2, 4) if tiny else (12, 96), 16, 1 if tiny else 3)
    harness.publish("bench_layers", rows, options)


if __name__ == "__main__":
    main()
