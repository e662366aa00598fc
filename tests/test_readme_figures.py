"""The README's figures of compiled steps are those that were recorded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parent.parent
RECORDS = {
    "TPU v5e (2x2)": "compiled_v5e_2x2_matrix_float32",
    "H100": "compiled_h100_matrix_float32",
}
ROWS = re.findall(
    r"^\| `([^`|]+)` \| compiled for ([^|]+) \|.*$",
    (TOP / "README.md").read_text(),
    flags=re.MULTILINE,
)


def _recorded(machine: str) -> dict[str, Any]:
    path = TOP / "benchmarks/results/compiled" / f"{RECORDS[machine]}.json"
    return {row["recipe"]: row for row in json.loads(path.read_text())["rows"]}


def _line(recipe: str, machine: str) -> str:
    """The row as it must stand."""
    rows = _recorded(machine)
    row = rows[recipe]
    base = rows[row["base"]]  # of the matrix; the table has as many parameters
    launches = f"{row['launches']} ({base['launches']})" if "launches" in row else "-"
    figures = [
        f"{row['moved / least']:.2f}",
        f"{row['moved MB'] / base['moved MB']:.2f}, {row['base']}",
        f"{row['temp / params']:.2f}",
        launches,
    ]
    cells = [f"`{recipe}`", f"compiled for {machine}", *figures]
    return f"| {' | '.join(cells)} |"


def test_every_recipe_stands_there_for_every_machine():
    recipes = dict.fromkeys(recipe for recipe, _ in ROWS)
    assert len(recipes) > 5
    assert ROWS == [(recipe, machine) for recipe in recipes for machine in RECORDS]


@pytest.mark.parametrize(("recipe", "machine"), ROWS, ids=" on ".join)
def test_figures_are_those_recorded(recipe: str, machine: str):
    assert _line(recipe, machine) in (TOP / "README.md").read_text().splitlines()
