"""Mathematics as MathML, which browsers draw without a script or a font of ours."""

from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
ElementTree.register_namespace("", NAMESPACE[1:-1])


def mathml(latex: str, *, display: str) -> str:
    """A formula as a ``math`` element; a ValueError where a command is unknown."""
    if "\\\\" in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    root = ElementTree.fromstring(converter.convert(latex, display=display))
    for element in root.iter():
        _tidy(element)
    if unknown := [text for text in root.itertext() if "\\" in text]:
        raise ValueError(f"no MathML for {unknown[0]!r}")
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element) -> None:
    """Names of several letters as one identifier, not as an operator or as letters."""
    letters = list(element)
    if len(letters) > 1 and all(x.get("mathvariant") == "normal" for x in letters):
        word = ElementTree.SubElement(element, f"{NAMESPACE}mi")
        word.text = "".join(x.text or "" for x in letters)
        for letter in letters:
            element.remove(letter)
    if element.tag == f"{NAMESPACE}mo" and (element.text or "").isalpha():
        element.tag = f"{NAMESPACE}mi"
    if element.tag == f"{NAMESPACE}mtext":
        element.text = (element.text or "").replace("\\_", "_")


def _rendered(node: Any, display: str) -> str:
    try:
        return mathml(node.astext(), display=display)
    # The converter has many kinds of errors; each is a warning, so an error of ours.
    except Exception as error:
        LOG.warning("%r in %r", error, node.astext(), location=node)
        return ""


def inline(writer: Any, node: Any) -> None:
    """Writes a formula within a line."""
    writer.body.append(_rendered(node, "inline"))
    raise nodes.SkipNode


def block(writer: Any, node: Any) -> None:
    """Writes a formula of its own."""
    writer.body.append(writer.starttag(node, "div", CLASS="math"))
    writer.body.append(f"{_rendered(node, 'block')}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Puts the renderer into Sphinx."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
