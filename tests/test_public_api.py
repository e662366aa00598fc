"""Every public name: listed, documented, shaped alike, and covered by a case."""

import ast
import importlib
import inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import optax
import pytest

import optaxtricks as ot
from tests.cases import CASES

HOME = Path(inspect.getfile(ot)).parent
ROOMS = {
    path.parent.name: importlib.import_module(f"optaxtricks.{path.parent.name}")
    for path in sorted(HOME.glob("[!_]*/__init__.py"))
}
PUBLIC = {
    **{name: getattr(ot, name) for name in ot.__all__},
    **{name: getattr(room, name) for room in ROOMS.values() for name in room.__all__},
    **{f"linen.{name}": getattr(ot.nn.linen, name) for name in ot.nn.linen.__all__},
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
# Optax's optimizers take these by position, so ours do.
OPTAX_ORDER = {"b1", "b2", "beta"}
each_function = pytest.mark.parametrize(
    "function", FUNCTIONS.values(), ids=list(FUNCTIONS)
)


def _is_factory(value: Any) -> bool:
    """Whether a public value is a function that returns a transformation."""
    if not inspect.isfunction(value):
        return False
    kind = inspect.signature(value).return_annotation
    return isinstance(kind, type) and issubclass(kind, optax.GradientTransformation)


FACTORIES = {name: value for name, value in PUBLIC.items() if _is_factory(value)}


def _sections(text: str) -> set[str]:
    lines = text.splitlines()
    return {line[:-1] for line in lines if line.endswith(":") and line[:1].isupper()}


@pytest.mark.parametrize("room", [ot, *ROOMS.values()], ids=["root", *ROOMS])
def test_all_is_sorted_and_complete(room: types.ModuleType) -> None:
    assert list(room.__all__) == sorted(set(room.__all__))
    tree = ast.parse(Path(inspect.getfile(room)).read_text())
    imported = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported - set(ROOMS) == set(room.__all__)


def test_the_root_holds_every_name_of_the_rooms() -> None:
    rooms = [room for name, room in ROOMS.items() if name not in ("nn", "plots")]
    assert {name for room in rooms for name in room.__all__} == set(ot.__all__)


@pytest.mark.parametrize("value", PUBLIC.values(), ids=list(PUBLIC))
def test_every_name_has_a_docstring(value: Any) -> None:
    text = inspect.cleandoc(value.__doc__ or "")
    assert text.partition("\n\n")[0].endswith(".")
    # NamedTuples and dataclasses get a docstring from Python itself.
    assert not text.startswith(f"{value.__name__}(")
    if issubclass(value if isinstance(value, type) else object, tuple):
        fields = text.partition("Attributes:\n")[2]
        assert all(f"  {name}: " in fields for name in value._fields)


@each_function
def test_every_function_documents_itself(function: types.FunctionType) -> None:
    text = inspect.cleandoc(function.__doc__ or "")
    assert {"Args", "Returns", "Raises", "Examples"} <= _sections(text)
    assert ">>> import optaxtricks as ot" in text
    assert f"ot.{function.__name__}(" in text or f".{function.__name__}(" in text
    arguments = text.partition("\nArgs:\n")[2].partition("\nReturns:\n")[0]
    for name in inspect.signature(function).parameters:
        assert f"\n  {name}: " in f"\n{arguments}", name


@pytest.mark.parametrize("factory", FACTORIES.values(), ids=list(FACTORIES))
def test_every_technique_names_its_source(factory: types.FunctionType) -> None:
    assert "References" in _sections(inspect.cleandoc(factory.__doc__ or ""))


@each_function
def test_options_are_keyword_only(function: types.FunctionType) -> None:
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    subjects = [p for p in positional if p.kind is p.POSITIONAL_OR_KEYWORD]
    options = {p.name for p in subjects if p.default is not p.empty}
    assert options <= OPTAX_ORDER
    assert len(subjects) <= 3


@each_function
def test_every_function_is_typed(function: types.FunctionType) -> None:
    signature = inspect.signature(function)
    kinds = [p.annotation for p in signature.parameters.values()]
    for kind in [signature.return_annotation, *kinds]:
        assert kind is not signature.empty
        # A string would hide a factory from the next test.
        assert not isinstance(kind, str)


def test_every_factory_has_a_case() -> None:
    assert set(FACTORIES) == {case.factory.__name__ for case in CASES.values()}


def test_dir_shows_rooms_that_are_imported_on_demand() -> None:
    assert {"nn", "plots", *ot.__all__} <= set(dir(ot))


def test_import_leaves_out_what_is_slow_to_import() -> None:
    code = "import sys, optaxtricks; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"jax.extend", "jax.experimental.pallas"} & set(loaded)
