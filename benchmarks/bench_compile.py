"""Trace and compile time of a step over many leaves, and import time.

The trap: XLA compiles one kernel for each distinct loop, so anything that differs
from leaf to leaf, be it one constant, costs a kernel a leaf.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

import optaxtricks as ot

from . import harness

_IMPORT = (
    "import time, optax; start = time.perf_counter(); import optaxtricks; "
    "print(time.perf_counter() - start)"
)


SHAPES = (64, 64), (64,), (64, 256), (256, 64), (256,)


def many_leaves(count: int) -> dict[str, jax.Array]:
    """Parameters of a few shapes that come again and again."""
    return {f"leaf_{i}": jnp.ones(SHAPES[i % 5]) for i in range(count)}


def import_seconds(runs: int) -> float:
    """Median time of `import optaxtricks` in fresh processes that imported Optax."""
    command = [sys.executable, "-c", _IMPORT]
    # With bytecode, as an installed package has it from its second import on.
    where = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    once = lambda: float(subprocess.check_output(command, text=True, env=where))
    once()
    return statistics.median(once() for _ in range(runs))


def main(argv: Sequence[str] | None = None) -> None:
    """Compares compile times in turn, and reports the import time."""
    options = harness.arguments(__doc__, argv)
    leaves, rounds = (10, 1) if options.size == "tiny" else (1000, 3)
    sides = {
        "optax.lion": lambda: optax.lion(1e-3),
        "gradient_dropout + optax.lion": lambda: optax.chain(
            ot.gradient_dropout(0.3, key=0), optax.lion(1e-3)
        ),
    }
    params = many_leaves(leaves)
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, make in sides.items():
            samples[name].append(harness.compile_seconds(make(), params))
    seconds = {name: statistics.median(times) for name, times in samples.items()}
    rows = [
        {"side": name, "leaves": leaves, "s": s, "ratio": s / seconds["optax.lion"]}
        for name, s in seconds.items()
    ]
    rows.append({"side": "import optaxtricks after optax", "s": import_seconds(rounds)})
    harness.publish("bench_compile", rows, options)


if __name__ == "__main__":
    main()
