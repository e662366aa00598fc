"""Signatures as the source has them.

Sphinx reads annotations from the running program, where an alias such as
``optax.ScalarOrSchedule`` is already the long union that it stands for.
"""

import ast
import inspect
import textwrap
import typing
from typing import Any

from sphinx.application import Sphinx

Signature = tuple[str, str | None]


class _Spelled(ast.NodeTransformer):
    """Aliases of a few literals, written out."""

    def __init__(self, value: Any):
        self.names = vars(inspect.getmodule(value))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        alias = self.names.get(node.id)
        if typing.get_origin(alias) is not typing.Literal:
            return node
        text = repr(alias).removeprefix("typing.")
        return ast.parse(text, mode="eval").body


def _of_function(node: ast.FunctionDef, method: bool) -> Signature:
    if method:
        del (node.args.posonlyargs or node.args.args)[0]
    returns = ast.unparse(node.returns).strip("'") if node.returns else None
    return f"({ast.unparse(node.args)})", returns


def _of_class(node: ast.ClassDef) -> Signature:
    """The arguments of ``__init__``, or the fields of a dataclass or a NamedTuple."""
    fields = []
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return _of_function(part, method=True)[0], None
        if isinstance(part, ast.AnnAssign):
            only = ast.unparse(part.annotation).endswith("KW_ONLY")
            fields.append("*" if only else ast.unparse(part))
    return (f"({', '.join(fields)})" if fields else "", None)


def written(
    app: Sphinx, what: str, name: str, value: Any, options: Any, *shown: str | None
) -> Signature | None:
    """What stands in the source, for functions, methods and classes."""
    if what not in ("function", "method", "class"):
        return None
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    node = _Spelled(value).visit(node)
    if isinstance(node, ast.ClassDef):
        return _of_class(node)
    assert isinstance(node, ast.FunctionDef)
    return _of_function(node, what == "method")


def setup(app: Sphinx) -> dict[str, bool]:
    """Puts the reader into Sphinx."""
    app.connect("autodoc-process-signature", written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
