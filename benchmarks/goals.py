"""What the library promises of speed and memory, and where each figure is measured.

The limits of time are those of a CPU, where XLA fuses least; `bench_card` measures the
same on a GPU beside what memory allows, and `benchmarks.compiled` counts bytes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure that must not be above its limit.

    Attributes:
      key: its name in `summary.json`.
      work: what is measured against what.
      benchmark: the module of `benchmarks` whose rows hold the figure.
      figure: the figure from those rows.
      limit: the most that is promised.
      unit: of the figure; empty for a ratio.
    """

    key: str
    work: str
    benchmark: str
    figure: Callable[[Rows], float]
    limit: float
    unit: str = ""


def cell(side: str, column: str) -> Callable[[Rows], float]:
    """The figure in a column of the first row whose side begins so."""
    return lambda rows: _row(rows, side)[column]


def of_recipe(recipe: str, column: str) -> Callable[[Rows], float]:
    """The figure in a column of a recipe's first row."""
    return lambda rows: next(row for row in rows if row["recipe"] == recipe)[column]


def ratio(over: str, under: str, column: str) -> Callable[[Rows], float]:
    """Of a column, one side's figure over another's."""
    return lambda rows: _row(rows, over)[column] / _row(rows, under)[column]


def inverse(figure: Callable[[Rows], float]) -> Callable[[Rows], float]:
    """One over a figure."""
    return lambda rows: 1 / figure(rows)


def _row(rows: Rows, side: str) -> Mapping[str, Any]:
    return next(row for row in rows if row["side"].startswith(side))


def _sparse_step(rows: Rows) -> float:
    """The row-sparse step's time over the dense one's, at one size of table."""
    dense = _row(rows, "dense adam")
    return (
        _row(rows, dense["side"].replace("dense adam", "RowSparse"))["ms"] / dense["ms"]
    )


def _flatness(rows: Rows) -> float:
    """The row-sparse step's time at the largest table over that at the one before."""
    times = [row["ms"] for row in rows if row["side"].startswith("RowSparse")]
    return times[-1] / times[-2]


GOALS = (
    Goal(
        "P1",
        "gradient_dropout + adamw / adamw",
        "bench_step",
        cell("gradient_dropout element", "ratio to adamw"),
        1.20,
    ),
    Goal(
        "P1 memory",
        "its temporary arrays",
        "bench_step",
        cell("gradient_dropout element", "temp MB"),
        1.0,
        "MB",
    ),
    Goal(
        "P2",
        "lion / optax.lion",
        "bench_sign",
        ratio("lion", "optax.lion", "ms a step"),
        0.40,
    ),
    Goal(
        "P2 memory",
        "its temporary arrays",
        "bench_sign",
        cell("lion", "temp MB"),
        1.0,
        "MB",
    ),
    Goal(
        "P3",
        "tiger, window of 4 / MultiSteps(adamw, 4), a micro-step",
        "bench_sign",
        cell("tiger, window", "ratio to MultiSteps"),
        0.12,
    ),
    Goal(
        "P3 memory",
        "state and accumulator of the two",
        "bench_sign",
        ratio("tiger, window", "MultiSteps", "state MB"),
        0.334,
    ),
    Goal(
        "P4",
        "lazy Adam on 4096 looked-up rows / dense step",
        "bench_rows",
        _sparse_step,
        1 / 30,
    ),
    Goal("P4 flat", "the same, four times the table", "bench_rows", _flatness, 1.25),
    Goal(
        "P5",
        "exact global threshold / jnp.sort",
        "bench_threshold",
        inverse(cell("exact", "sort / side")),
        1 / 15,
    ),
    Goal(
        "P6",
        "state of compact_entries / adamw's, 20 % kept",
        "bench_state",
        cell("compact_entries: 20.0%", "state / adamw"),
        0.35,
    ),
    Goal(
        "P6 sparse",
        "the same, 0.5 % kept",
        "bench_state",
        cell("compact_entries: 0.5%", "state / adamw"),
        0.01,
    ),
    Goal(
        "P7 memory",
        "ladder / full fine-tuning, 8 layers x 512: temporary bytes",
        "ladder",
        of_recipe("ladder", "temp / full"),
        0.25,
    ),
    Goal(
        "P7",
        "the same: time of a step",
        "ladder",
        of_recipe("ladder", "ms / full"),
        0.40,
    ),
    Goal(
        "P8",
        "ladder on cached taps / full fine-tuning: time of a step",
        "ladder",
        of_recipe("ladder_cached", "ms / full"),
        0.12,
    ),
    Goal(
        "P9",
        "trace and compile 1000 leaves, gradient_dropout + lion / lion",
        "bench_compile",
        cell("gradient_dropout", "ratio"),
        4.0,
    ),
    Goal(
        "P10",
        "import on top of Optax",
        "bench_compile",
        cell("import optaxtricks", "s"),
        0.06,
        "s",
    ),
    Goal(
        "P11",
        "Fisher information / plain gradient pass",
        "bench_fisher",
        cell("fisher, microbatch 1", "ratio to its batch gradient"),
        1.5,
    ),
    Goal(
        "P11 no table",
        "the same, word table left out",
        "bench_fisher",
        cell("fisher, no table", "ratio to its batch gradient"),
        1.5,
    ),
    Goal(
        "monitor",
        "monitor_groups, then adamw / adamw",
        "bench_monitor",
        cell("monitor_groups, adamw", "ratio to bare"),
        1.35,
    ),
    *(
        Goal(
            f"layers {name}",
            f"per_layer({name}) / {name} on 12 stacked layers",
            "bench_layers",
            cell(f"{name}, per_layer, axis 0", "ratio to bare"),
            1.05,
        )
        for name in ("tiger", "lion", "adamw", "dropout + adamw")
    ),
    Goal(
        "layers memory",
        "temporary arrays of per_layer(dropout + adamw), layers on axis 1",
        "bench_layers",
        cell("dropout + adamw, per_layer, axis 1", "temp MB"),
        1.0,
        "MB",
    ),
    Goal(
        "layers compile",
        "compile per_layer(tiger), 96 layers / 12",
        "bench_layers",
        ratio("compile per_layer(tiger), 96", "compile per_layer(tiger), 12", "s"),
        1.25,
    ),
)
