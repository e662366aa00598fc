"""The tables of which recipe fits where, from the plans that were written down."""

import json
import pathlib
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

PLANS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "plans.json"


class PlanTable(SphinxDirective):
    """The directive ``plan-table``, with the kind of cells as its argument."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Writes the table as reStructuredText and reads that."""
        cells = json.loads(PLANS.read_text())
        rows = table([one for one in cells if one["cell"] == self.arguments[0]])
        lines = ["\n     - ".join(row) for row in rows]
        text = "\n   * - ".join(["", *lines])
        return self.parse_text_to_nodes(
            f".. list-table::\n   :header-rows: 1\n{text}\n"
        )


def table(cells: list[dict[str, Any]]) -> list[list[str]]:
    """A head, then a row for each recipe."""
    kinds = {"fits": _fits, "smallest": _smallest}
    columns = list(dict.fromkeys(_column(one) for one in cells))
    names = list(dict.fromkeys(one["row"] for one in cells))
    found = {(one["row"], _column(one)): kinds[one["cell"]](one) for one in cells}
    head = ["", *columns]
    return [head, *([name, *(found.get((name, c), "") for c in columns)] for name in names)]


def _column(one: dict[str, Any]) -> str:
    if one["cell"] == "smallest":
        return one["model"]
    return f"{one['model']}, {one['target']}"


def _fits(one: dict[str, Any]) -> str:
    given = (one["parameters"] + one["state"] + one["batch"]) / 1e9
    if one["total"] is None:
        return f"no: {given:.1f} + …"
    answer = "" if one["fits"] else "no: "
    return f"{answer}{given:.1f} + {one['temporaries'] / 1e9:.1f}"


def _smallest(one: dict[str, Any]) -> str:
    if not one["fits"]:
        return f"none up to {one['target']}"
    return f"{one['target']}: {one['total'] / 1e9:.1f}"


def setup(app: Sphinx) -> dict[str, bool]:
    """Puts the directive into Sphinx."""
    app.add_directive("plan-table", PlanTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
