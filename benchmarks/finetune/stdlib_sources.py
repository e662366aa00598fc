"""Docstrings of the running interpreter's own standard library.

Nothing is downloaded and nothing is imported: sources are parsed. Other Python
versions have other docstrings, so results compare within one version.
"""

import ast
import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator

from .errors import InputError

# Tests are left out, and so are packages that newer Python versions dropped.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_DROPPED = {"distutils", "lib2to3"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function
Rows = list[dict[str, str]]


def library() -> pathlib.Path:
    """The folder of the standard library's sources."""
    return pathlib.Path(sysconfig.get_path("stdlib"))


def sources(root: pathlib.Path) -> dict[str, list[bytes]]:
    """The sources of every public top-level module, in the order of their paths."""
    found: dict[str, list[bytes]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        module = parts[0].removesuffix(".py")
        private = module.startswith("_") or module in _DROPPED
        if not private and not _SKIPPED.intersection(parts) and "-" not in module:
            found.setdefault(module, []).append(path.read_bytes())
    return found


def documented(source: bytes) -> Iterator[tuple[Documented, str]]:
    """Every node that has a docstring, with its words on one line."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, Documented):
            text = " ".join((ast.get_docstring(node) or "").split())
            if text:
                yield node, text


def order(text: str) -> str:
    """A fixed shuffle: by digest, so neither file order nor a seed matters."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def required(train: Rows) -> None:
    """An error where an installation has no docstrings to make a task of."""
    if not train:
        raise InputError(
            "the standard library's sources have no docstrings here; name a task "
            "with `--task DIR`."
        )
