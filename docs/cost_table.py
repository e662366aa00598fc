"""The table of the cost model, from the numbers that the tests hold it to."""

from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from benchmarks.cost_model import (
    BANDWIDTH,
    COSTS,
    MODELS,
    compact_state,
    milliseconds,
)


def rows() -> Iterator[list[str]]:
    """Heads, then a row for every chain."""
    columns = [(chip, model) for chip in BANDWIDTH for model in MODELS]
    heads = [f"{model}, {chip}, ms" for chip, model in columns]
    yield ["Chain", "State, B", "Moved, B", *heads, "Note"]
    for name, cost in COSTS.items():
        times = [
            f"{milliseconds(cost, chip=chip, params=MODELS[model]):.1f}"
            for chip, model in columns
        ]
        yield [f"``{name}``", f"{cost.state:g}", f"{cost.moved:g}", *times, cost.note]
    for kept in (0.2, 0.005):
        name = f"``compact_entries(adamw)``, {kept:.1%} kept"
        yield [name, f"{compact_state(kept):g}", *[""] * (len(heads) + 2)]


class CostTable(SphinxDirective):
    """The directive ``cost-table``."""

    def run(self) -> list[nodes.Node]:
        """Writes the table as reStructuredText and reads that."""
        cells = ["\n     - ".join(row) for row in rows()]
        text = "\n   * - ".join(["", *cells])
        return self.parse_text_to_nodes(
            f".. list-table::\n   :header-rows: 1\n{text}\n"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Puts the directive into Sphinx."""
    app.add_directive("cost-table", CostTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
