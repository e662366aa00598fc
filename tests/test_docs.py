"""The site's sources: every public name stands on a page, under the right directive."""

import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import optaxtricks as ot

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.rst"))
MODULES = {
    "optaxtricks": ot,
    "optaxtricks.nn": ot.nn,
    "optaxtricks.nn.linen": ot.nn.linen,
    "optaxtricks.plots": ot.plots,
}
PUBLIC = {
    f"{module}.{name}": getattr(value, name)
    for module, value in MODULES.items()
    for name in value.__all__
}
BUILT = DOCS.parent / "build" / "docs"
# Whatever a browser fetches by itself; a link to a paper is not.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|link)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]*)"""
    r"""|(?:@import|url\()\s*['"]?((?:https?:)?//[^'")]*)"""
)
DIRECTIVE = re.compile(
    r"^\.\. (module|currentmodule|autofunction|autoclass):: (\S+)$", re.MULTILINE
)


def _entries(page: Path) -> list[tuple[str, str]]:
    """Directive and full name of everything that a page documents."""
    found, module = [], ""
    for directive, name in DIRECTIVE.findall(page.read_text()):
        if directive.endswith("module"):
            module = name
        if directive == "module":
            found.append((directive, name))
        if directive.startswith("auto"):
            found.append((directive, f"{module}.{name}"))
    return found


ENTRIES = [entry for page in PAGES for entry in _entries(page)]


def _directive(value: Any) -> str:
    if inspect.ismodule(value):
        return "module"
    return "autoclass" if inspect.isclass(value) else "autofunction"


def test_every_public_name_is_on_one_page() -> None:
    assert set(Counter(ENTRIES).values()) == {1}
    assert {name for _, name in ENTRIES} == set(PUBLIC) | set(MODULES)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_directive_fits(name: str) -> None:
    assert (_directive(PUBLIC[name]), name) in ENTRIES


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = (DOCS / "index.rst").read_text().partition("toctree::")[2].split()
    assert {page.stem for page in PAGES} - {"index"} <= set(listed)


@pytest.mark.skipif(not BUILT.exists(), reason="`make docs` builds it")
def test_the_site_fetches_nothing_from_elsewhere() -> None:
    assert FETCHED.search('<script async src="https://elsewhere/x.js">')
    assert FETCHED.search("@import url('//elsewhere/x.css')")
    files = [path for path in BUILT.rglob("*") if path.suffix in (".html", ".css")]
    assert BUILT / "index.html" in files
    for path in files:
        assert not FETCHED.search(path.read_text()), path
