"""Every promise of speed and memory, measured and held against its limit on a CPU.

python -m benchmarks                      # a quarter of an hour; prints one table
python -m benchmarks --out DIR            # also summary.json and summary.png
python -m benchmarks --compare OLD.json   # and what became slower since then
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.progress
from matplotlib.figure import Figure
from rich.table import Table

from . import harness
from .goals import GOALS

# The noise of a quiet machine; more is called a regression.
TOLERANCE = 1.15
MET, MISSED = "#0072B2", "#D55E00"


def measure(size: str, out: pathlib.Path) -> dict[str, Any]:
    """Runs each benchmark in a process of its own; gives the summary."""
    modules = list(dict.fromkeys(goal.benchmark for goal in GOALS))
    records = {}
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console) as progress:
        bar = progress.add_task("benchmarks", total=len(modules))
        for module in modules:
            progress.update(bar, description=module)
            command = [sys.executable, "-m", f"benchmarks.{module}", "--size", size]
            subprocess.run(
                [*command, "--out", str(out)], check=True, stdout=subprocess.DEVNULL
            )
            records[module] = json.loads((out / f"{module}.json").read_text())
            progress.advance(bar)
    figures = {
        goal.key: {
            "work": goal.work,
            "benchmark": goal.benchmark,
            "figure": (figure := goal.figure(records[goal.benchmark]["rows"])),
            "limit": goal.limit,
            "unit": goal.unit,
            "met": figure <= goal.limit,
        }
        for goal in GOALS
    }
    environment = records[modules[-1]]["environment"]
    return {"size": size, "environment": environment, "figures": figures}


def table(summary: dict[str, Any], old: dict[str, Any] | None) -> Table:
    """The summary for a terminal."""
    caption = ", ".join(f"{k} {v}" for k, v in summary["environment"].items())
    result = Table(caption=caption, box=None, pad_edge=False)
    for column in (
        "",
        "work",
        "figure",
        "at most",
        "met",
        *(["before"] if old else []),
    ):
        result.add_column(column, justify="left" if column in ("", "work") else "right")
    for key, row in summary["figures"].items():
        cells = [f"{row['figure']:.3g}", f"{row['limit']:.3g}"]
        cells = [f"{cell} {row['unit']}".strip() for cell in cells]
        cells = [key, row["work"], *cells, "yes" if row["met"] else "no"]
        if old:
            before = old["figures"].get(key)
            cells.append(f"{before['figure']:.3g}" if before else "-")
        result.add_row(*cells)
    return result


def regressions(summary: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Figures that grew beyond the noise since an older summary."""
    found = []
    for key, row in summary["figures"].items():
        before = old["figures"].get(key)
        if before and row["figure"] > TOLERANCE * before["figure"] + 1e-3:
            found.append(f"{key}: {before['figure']:.3g} -> {row['figure']:.3g}")
    return found


def chart(summary: dict[str, Any], path: pathlib.Path) -> None:
    """Each figure over its limit, on a logarithmic axis."""
    figure = Figure(figsize=(8, 0.34 * len(summary["figures"]) + 1.2))
    axes = figure.subplots()
    keys = list(summary["figures"])[::-1]
    for place, key in enumerate(keys):
        row = summary["figures"][key]
        share = max(row["figure"] / row["limit"], 1e-3)
        axes.plot([1e-3, share], [place, place], color="0.85", linewidth=2, zorder=1)
        axes.scatter(share, place, color=MET if row["met"] else MISSED, zorder=2)
    axes.axvline(1.0, color="0.3", linewidth=1)
    axes.set_xscale("log")
    works = [f"{summary['figures'][key]['work']}  {key}" for key in keys]
    axes.set_yticks(range(len(keys)), works, fontsize=8)
    axes.set_xlabel("figure / limit (left of the line: promise kept)")
    where = summary["environment"]
    axes.set_title(
        f"measured, {harness.machine(where)}, jax {where['jax']}, {where['date']}",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns 1 if something became slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--out", type=pathlib.Path, help="folder for JSON and chart")
    parser.add_argument("--compare", type=pathlib.Path, help="an older summary.json")
    options = parser.parse_args(argv)
    old = json.loads(options.compare.read_text()) if options.compare else None
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or pathlib.Path(scratch)
        summary = measure(options.size, out)
        if options.out:
            text = json.dumps(summary, indent=2)
            (out / "summary.json").write_text(text + "\n")
            chart(summary, out / "summary.png")
    console = rich.console.Console()
    console.print(table(summary, old))
    slower = regressions(summary, old) if old else []
    for line in slower:
        console.print(f"slower or larger: {line}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
