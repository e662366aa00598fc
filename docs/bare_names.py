"""References by bare name: docstrings of one room name functions of another."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

ROOMS = ("optaxtricks", "optaxtricks.nn", "optaxtricks.plots", "optaxtricks.nn.linen")
# Where an alias in annotations is explained.
EXPLAINED = {
    "AxisName": "gradient_dropout",
    "Labels": "label_by_path",
    "Selector": "select",
    "Stacked": "per_layer",
    "Taps": "SideLadder",
}


def resolve(
    app: Sphinx, env: BuildEnvironment, node: Any, shown: nodes.TextElement
) -> nodes.reference | None:
    """The first room with a name, where that of the docstring's own has none.

    Annotations give the file that defines a class, so they come here as well.
    """
    if node["refdomain"] != "py":
        return None
    target = node["reftarget"]
    if target.startswith("optaxtricks."):
        target = target.rpartition(".")[2]
    target = EXPLAINED.get(target, target)
    objects = env.domains.python_domain.objects
    for room in ROOMS:
        if entry := objects.get(f"{room}.{target}"):
            return make_refnode(
                app.builder, node["refdoc"], entry.docname, entry.node_id, shown
            )
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Puts the resolver into Sphinx."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
