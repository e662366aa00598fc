"""Rows of compiled steps as a table, a record, a chart, and beside an older record."""

import pathlib
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from .. import harness
from .kept import COMPILERS
from .steps import Program

# What must not grow, and by how much it may for the compiler's whims.
_WATCHED = {
    "moved / least": 1.02,
    "temp / params": 1.02,
    "launches": 1.1,
    "collective MB": 1.02,
    "loops": 1.0,
    "registers": 1.1,
    "spilled B": 1.0,
}
_UNSHOWN = ("base", "size", "moved MB", "Mcycles", "compile s")
_COLOUR, _FLOOR = "#0072B2", "0.3"


def row(
    name: str, base_name: str, size: str, one: Program, base: Program
) -> dict[str, Any]:
    """A recipe's figures, and some of them over those of its base."""
    result = {"recipe": name, "base": base_name, "size": size, **one.figures}
    over = lambda figure: one.figures[figure] / max(base.figures[figure], 1e-9)
    result["compile / base"] = over("compile s")
    if "Mcycles" in result:
        result["cycles / base"] = over("Mcycles")
        del result["launches"]  # a TPU runs one program
    else:
        result["launches / base"] = over("launches")
    return result


def record(name: str, options: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written down: the target, versions, and the rows."""
    where = harness.environment()
    return {
        "name": name,
        "target": options.target,
        "dtype": str(options.dtype),
        "compiled on": where | {each: harness.version(each) for each in COMPILERS},
        "rows": rows,
    }


def table(record: dict[str, Any], old: dict[str, Any] | None) -> Table:
    """For a terminal; beside an older record's bytes and temporaries, if given."""
    title = f"compiled for {record['target']}, {record['dtype']}"
    result = Table(title=title, box=None, pad_edge=False)
    named = (key for row in record["rows"] for key in row if key not in _UNSHOWN)
    columns = list(dict.fromkeys(named))
    before = {row["recipe"]: row for row in old["rows"]} if old else {}
    for column in columns:
        justify = "left" if column == "recipe" else "right"
        result.add_column(column, justify=justify, no_wrap=True)
    if old:
        result.add_column("moved before", justify="right")
        result.add_column("temp before", justify="right")
    for row in record["rows"]:
        cells = [_cell(row.get(column, "")) for column in columns]
        if old:
            earlier = before.get(row["recipe"], {})
            figures = ("moved / least", "temp / params")
            cells += [_cell(earlier.get(figure, "-")) for figure in figures]
        result.add_row(*cells)
    return result


def worse(record: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Figures that grew beyond their tolerance since an older record."""
    before = {row["recipe"]: row for row in old["rows"]}
    found = []
    for row in record["rows"]:
        earlier = before.get(row["recipe"], {})
        for figure, tolerance in _WATCHED.items():
            new, past = row.get(figure), earlier.get(figure)
            if new is not None and past is not None and new > tolerance * past + 1e-3:
                found.append(f"{row['recipe']}, {figure}: {past:.4g} -> {new:.4g}")
    return found


def chart(record: dict[str, Any], path: pathlib.Path) -> None:
    """Bytes moved over the least for each recipe."""
    rows = record["rows"][::-1]
    figure = Figure(figsize=(8, 0.26 * len(rows) + 1.2))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        moved = row["moved / least"]
        axes.plot([1, moved], [place, place], color="0.85", linewidth=2, zorder=1)
        axes.scatter(moved, place, color=_COLOUR, zorder=2)
    axes.axvline(1.0, color=_FLOOR, linewidth=1)
    axes.set_yticks(range(len(rows)), [row["recipe"] for row in rows], fontsize=8)
    axes.set_xlabel(f"bytes moved / least, {record['target']}, {record['dtype']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
