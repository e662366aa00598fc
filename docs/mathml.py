"""Mathematics as MathML, which browsers draw without a script or a font of ours."""

from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml import converter
from sphinx.application import Sphinx
from sphinx.util import logging

LOG = logging.getLogger(__name__)
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"
_NAMES = {f"{NAMESPACE}mi", f"{NAMESPACE}munder"}
_THIN = {"width": "0.167em"}
ElementTree.register_namespace("", NAMESPACE[1:-1])


def mathml(latex: str, *, display: str) -> str:
    """A formula as a ``math`` element; a ValueError where a command is unknown."""
    if "\\\\" in latex:
        latex = rf"\begin{{split}}{latex}\end{{split}}"
    root = ElementTree.fromstring(converter.convert(latex, display=display))
    for element in root.iter():
        _tidy(element)
    for element in root.iter(f"{NAMESPACE}mrow"):
        _space(element)
    if unknown := [text for text in root.itertext() if "\\" in text]:
        raise ValueError(f"no MathML for {unknown[0]!r}")
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element) -> None:
    """Sets names of several letters as TeX does; browsers take them for operators."""
    letters = list(element)
    upright = [x for x in letters if x.get("mathvariant") == "normal"]
    if element.tag == f"{NAMESPACE}mrow" and letters and upright == letters:
        element[:] = [ElementTree.Element(f"{NAMESPACE}mi", mathvariant="normal")]
        element[0].text = "".join(x.text or "" for x in letters)
    if element.text == "~":
        element.tag, element.text = f"{NAMESPACE}mo", "∼"  # noqa: RUF001
    if element.tag == f"{NAMESPACE}msub" and element[0].get("movablelimits"):
        element.tag = f"{NAMESPACE}munder"
    if element.tag == f"{NAMESPACE}mo" and (element.text or "").isalpha():
        element.tag = f"{NAMESPACE}mi"
    if element.tag == f"{NAMESPACE}mtext":
        element.text = (element.text or "").replace("\\_", "_")


def _space(element: ElementTree.Element) -> None:
    """Puts a thin space between the name of a function and what it is applied to."""
    for i in reversed(range(len(element) - 1)):
        name = next(element[i].iter(f"{NAMESPACE}mi"), None)
        if element[i].tag not in _NAMES or name is None or len(name.text or "") < 2:
            continue
        if element[i + 1].tag not in (f"{NAMESPACE}mo", f"{NAMESPACE}mspace"):
            element.insert(i + 1, ElementTree.Element(f"{NAMESPACE}mspace", _THIN))


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
