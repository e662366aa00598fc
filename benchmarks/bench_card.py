"""Optimizer steps on one accelerator, beside the time that memory alone would take.

A step must read parameters, gradient and state once and write parameters and state
once: `least MB`. Over the bandwidth of a large copy on the same card, measured in the
same run, this is the floor, and `floor / time` is 1 for a step that waits for nothing
but memory. Steps are queued without waiting, so that the time is the device's. What
does not fit into the time or the memory there is says so in its row; the result is
written after every row.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import backend

from . import harness
from .card_sides import QUEUED, SIDES, Side

Row = dict[str, Any]


def rows_within(
    budget: float,
    sides: Sequence[Side],
    measure: Callable[[Side], Row],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Row]:
    """A row for each side in turn, until another as slow as the slowest is too much.

    Args:
      budget: seconds for all.
      sides: in the order of their importance.
      measure: gives the figures of one.
      clock: the time in seconds.
    """
    start, slowest = clock(), 0.0
    for side in sides:
        begun = clock()
        spent = begun - start
        if spent + slowest > budget:
            row: Row = {"skipped": f"time: {spent:.0f} of {budget:.0f} s are spent"}
        else:
            row = _guarded(measure, side)
            slowest = max(slowest, clock() - begun)
        promise = {"promise": side.promise} if side.promise else {}
        yield {"side": side.name} | promise | row


def _guarded(measure: Callable[[Side], Row], side: Side) -> Row:
    """The figures, or why the device gave none: the other sides are worth having."""
    try:
        return measure(side)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        full = "RESOURCE_EXHAUSTED" in reason
        return {"skipped": f"memory: {reason}"} if full else {"failed": reason}


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


class Meter:
    """Measures one side at a time, so that the card holds one at a time."""

    def __init__(self, size: str, bandwidth: float):
        self.size, self.bandwidth = size, bandwidth
        self.windows = 2 if size == "tiny" else 15
        self.seconds: dict[str, float] = {}

    def __call__(self, side: Side) -> Row:
        step = side.build(self.size)
        times = harness.alternate({"": step}, windows=self.windows)
        seconds = self.seconds[side.name] = times[""] / QUEUED
        row: Row = {"ms": 1e3 * seconds}
        if side.base in self.seconds:
            row["time / base"] = seconds / self.seconds[side.base]
            row["base"] = side.base
        if least := getattr(step, "least", None):
            row["least MB"] = least / 1e6
            row["floor / time"] = least / self.bandwidth / seconds
        row["temp MB"] = harness.temp_bytes(step.compiled) / 1e6
        row["state MB"] = harness.tree_bytes(step.state) / 1e6
        return row


def card() -> dict[str, Any]:
    """What `harness.environment` does not know of a card."""
    memory = jax.devices()[0].memory_stats() or {}
    plugins = ("jax-cuda12-plugin", "jax-cuda13-plugin")
    return {
        "memory GB": round(memory.get("bytes_limit", 0) / 1e9, 1) or None,
        "driver": _driver(),
        "runtime": " ".join(backend.get_backend().platform_version.split()),
    } | {name: found for name in plugins if (found := harness.version(name))}


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # no NVIDIA card, or a container without its tools
    return shown.stdout.split("\n")[0].strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Measures all sides that fit; returns 1 if the device failed on one."""
    parser = harness.parser(__doc__)
    parser.add_argument("--budget", type=float, default=330, help="seconds for all")
    parser.add_argument("--gpu", action="store_true", help="stop where there is none")
    options = parser.parse_args(argv)
    if options.gpu and (found := jax.default_backend()) != "gpu":
        sys.exit(f"bench_card: JAX finds no GPU on this machine, only: {found}")
    size, where = options.size, harness.environment() | card()
    bandwidth = copy_bandwidth(1 << (12 if size == "tiny" else 28))
    rows: list[Row] = [{"side": "copy", "GB/s": bandwidth / 1e9}]
    for row in rows_within(options.budget, SIDES, Meter(size, bandwidth)):
        print(row, flush=True)
        rows.append(row)
        harness.write("bench_card", rows, options, where)
    harness.show(rows, where)
    return 1 if any("failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
