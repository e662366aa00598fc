"""The default task: which standard-library module does a docstring belong to?

Nothing is downloaded and nothing is imported: the sources of the running
interpreter's own standard library are parsed. Other Python versions have other
docstrings, so results compare within one version.
"""

import ast
import collections
import hashlib
import pathlib
import sysconfig
from collections.abc import Iterator

from .errors import InputError

SMALLEST, LARGEST, DEV_SHARE = 60, 120, 0.3

# Tests are left out, and so are packages that newer Python versions dropped.
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
_DROPPED = {"distutils", "lib2to3"}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

Rows = list[dict[str, str]]


def docstring_task(root: pathlib.Path | None = None) -> tuple[Rows, Rows]:
    """Train and dev rows, with `text` and `label`; the same at every call."""
    root = pathlib.Path(sysconfig.get_path("stdlib")) if root is None else root
    train, dev = [], []
    for module, texts in sorted(_texts_by_module(root).items()):
        rows = [{"text": text, "label": module} for text in texts]
        cut = round(len(rows) * DEV_SHARE)
        dev += rows[:cut]
        train += rows[cut:]
    if not train:
        raise InputError(
            "the standard library's sources have no docstrings here; name a task "
            "with `--task DIR`."
        )
    return train, dev


def _texts_by_module(root: pathlib.Path) -> dict[str, list[str]]:
    """Up to LARGEST docstrings of every module with SMALLEST or more."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for module, source in _sources(root):
        found[module].update(_docstrings(source))
    owners = collections.Counter(text for texts in found.values() for text in texts)
    chosen = {}
    for module, texts in found.items():
        # A text that two modules share has no right answer.
        own = sorted((t for t in texts if owners[t] == 1), key=_order)
        if len(own) >= SMALLEST:
            chosen[module] = own[:LARGEST]
    return chosen


def _sources(root: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """(top-level module, source) of the modules that may have enough docstrings."""
    files = collections.defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        module = parts[0].removesuffix(".py")
        private = module.startswith("_") or module in _DROPPED
        if not private and not _SKIPPED.intersection(parts) and "-" not in module:
            files[module].append(path.read_bytes())
    for module, sources in files.items():
        # Parsing takes seconds; two quotes a docstring is a bound that costs none.
        quotes = sum(s.count(b'"""') + s.count(b"'''") for s in sources)
        if quotes >= 2 * SMALLEST:
            yield from ((module, source) for source in sources)


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            text = " ".join((ast.get_docstring(node) or "").split())
            if text:
                yield text


def _order(text: str) -> str:
    """A fixed shuffle: by digest, so neither file order nor a seed matters."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
