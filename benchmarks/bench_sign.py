"""Lion and Tiger against Optax: time, memory, and bandwidth of one step.

The bandwidth of a side is the bytes that its arithmetic must move once (read gradient,
momentum and parameter, write the last two) over its time; `scale and add` moves three
arrays in place, as fast as a step can.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optaxtricks as ot

from . import harness

WINDOW = 4


def sides() -> dict[str, tuple[optax.GradientTransformation, int]]:
    """Each optimizer, and how many arrays of the parameters' size it must move."""
    adamw = optax.adamw(1e-3)
    multi = optax.MultiSteps(adamw, every_k_schedule=WINDOW)
    return {
        "scale and add": (optax.sgd(1e-4), 3),
        "optax.lion": (optax.lion(1e-4), 5),
        "lion": (ot.lion(1e-4), 5),
        "lion, bfloat16 momentum": (ot.lion(1e-4, mu_dtype=jnp.bfloat16), 4),
        "lion, cautious": (ot.lion(1e-4, cautious=True), 5),
        "tiger": (ot.tiger(1e-3, embeddings="token"), 5),
        "tiger, nothing skipped": (ot.tiger(1e-3, embeddings="token", shrink=None), 5),
        f"tiger, window of {WINDOW}": (
            ot.tiger(1e-3, embeddings="token", accumulate_steps=WINDOW),
            5,
        ),
        "adamw": (adamw, 7),
        f"MultiSteps(adamw, {WINDOW})": (
            multi.gradient_transformation(),
            5,
        ),
    }


def narrow_sides() -> dict[str, tuple[optax.GradientTransformation, int]]:
    """The same on parameters, gradients and momentum in bfloat16."""
    lion, last = ot.lion(1e-4), ot.round_stochastically(key=0)
    return {
        "bfloat16: optax.lion": (optax.lion(1e-4), 5),
        "bfloat16: lion": (lion, 5),
        "bfloat16: lion, round_stochastically": (optax.chain(lion, last), 5),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compares one step of each side on the same tree, windows averaged."""
    options = harness.arguments(__doc__, argv)
    shapes = harness.SIZES[options.size]
    wide, narrow = sides(), narrow_sides()
    steps = {name: harness.TrainStep(tx, shapes) for name, (tx, _) in wide.items()}
    steps |= {
        name: harness.TrainStep(tx, shapes, jnp.bfloat16)
        for name, (tx, _) in narrow.items()
    }
    windows = {name: lambda step=step: _window(step) for name, step in steps.items()}
    seconds = harness.alternate(windows, windows=3 if options.size == "tiny" else 9)
    rows = []
    for name, (_, arrays) in (wide | narrow).items():
        params = harness.tree_bytes(steps[name].params)
        second = seconds[name] / WINDOW
        rows.append(
            {
                "side": name,
                "ms a step": 1e3 * second,
                "ratio to optax.lion": seconds[name] / seconds["optax.lion"],
                "ratio to MultiSteps": (
                    seconds[name] / seconds[f"MultiSteps(adamw, {WINDOW})"]
                ),
                "GB/s": arrays * params / second / 1e9,
                "state MB": harness.tree_bytes(steps[name].state) / 1e6,
                "temp MB": steps[name].temp_bytes / 1e6,
            }
        )
    harness.publish("bench_sign", rows, options)


def _window(step: harness.TrainStep) -> Any:
    """So many steps that a window of accumulation is in every sample."""
    return jax.block_until_ready([step() for _ in range(WINDOW)][-1])


if __name__ == "__main__":
    main()
