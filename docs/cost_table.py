"""The table of the cost model, from the numbers that the tests hold it to."""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from benchmarks.cost_model import rows


class CostTable(SphinxDirective):
    """The directive ``cost-table``."""

    def run(self) -> list[nodes.Node]:
        """Writes the table as reStructuredText and reads that."""
        cells = ["\n     - ".join(row).replace("`", "``") for row in rows()]
        text = "\n   * - ".join(["", *cells])
        return self.parse_text_to_nodes(
            f".. list-table::\n   :header-rows: 1\n{text}\n"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Puts the directive into Sphinx."""
    app.add_directive("cost-table", CostTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
