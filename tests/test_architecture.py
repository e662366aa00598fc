"""The rooms of the package: who may import whom, file sizes, what an import costs."""

import ast
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

import optaxtricks

PACKAGE = Path(__file__).parent.parent / "optaxtricks"
FILES = sorted(PACKAGE.rglob("*.py"))
# rich draws progress bars, on use: the last test shows that no import needs it.
OUTSIDE = {"jax", "numpy", "optax", "rich"} | set(sys.stdlib_module_names)
MAY_IMPORT = {
    "_core": {"_core"},
    "selection": {"_core"},
    "transforms": {"_core", "selection"},
    "recipes": {"_core", "selection", "transforms"},
    "inspection": {"_core", "selection", "transforms"},
    "nn": {"_core", "selection"},
    "plots": {"_core"},
}
# Rooms that need an extra: the facade opens them on use. Their files may share code.
ON_USE = {"nn": "flax", "plots": "matplotlib"}
each_file = pytest.mark.parametrize(
    "path", FILES, ids=lambda path: str(path.relative_to(PACKAGE))
)


def _modules(source: str, package: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Full dotted names that `source`, a module of `package`, imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            stem = start + tuple((node.module or "").split("."))
            stem = tuple(part for part in stem if part)
            found |= {(*stem, alias.name) for alias in node.names}
    return found


def _at_run_time(source: str) -> str:
    """The source without what only type checkers read."""
    tree = ast.parse(source)
    for node in tree.body:
        if isinstance(node, ast.If):
            if ast.unparse(node.test) == "typing.TYPE_CHECKING":
                node.body = [ast.Pass()]
    return ast.unparse(tree)


def _imports(path: Path) -> set[tuple[str, ...]]:
    room = path.parent.relative_to(PACKAGE.parent).parts
    return _modules(path.read_text(), room)


def _wrong_steps(
    imports: Collection[tuple[str, ...]], room: str, file: str
) -> set[str]:
    """Imports out of a file of a room that go up or sideways."""
    wrong = set()
    for name in imports:
        if name[0] != "optaxtricks":
            continue
        target = name[1] if len(name) > 1 else ""
        inside = target == room
        sideways = inside and file != "__init__" and room not in {"_core", *ON_USE}
        if sideways or not (inside or target in MAY_IMPORT[room]):
            wrong.add(".".join(name))
    return wrong


def test_the_reader_of_imports_sees_them_all() -> None:
    source = "import a.b\nfrom c.d import e\nfrom . import f\nfrom ..g.h import i\n"
    assert _modules(source, ("p", "q")) == {
        ("a", "b"),
        ("c", "d", "e"),
        ("p", "q", "f"),
        ("p", "g", "h", "i"),
    }
    names = {("optaxtricks", *rest) for rest in [("recipes", "x"), ("_core", "y")]}
    assert _wrong_steps(names, "transforms", "z") == {"optaxtricks.recipes.x"}
    same = {("optaxtricks", "transforms", "dropout")}
    assert _wrong_steps(same, "transforms", "z") and not _wrong_steps(
        same, "transforms", "__init__"
    )


@each_file
def test_imports_point_down(path: Path) -> None:
    room = path.parent.relative_to(PACKAGE).parts
    if room:
        assert not _wrong_steps(_imports(path), room[0], path.stem)
    else:
        # The facade: any room but those that need an extra.
        found = _modules(_at_run_time(path.read_text()), ("optaxtricks",))
        targets = {name[1] for name in found if name[0] == "optaxtricks"}
        assert targets <= set(MAY_IMPORT) - set(ON_USE)


def test_type_checkers_see_the_rooms_that_open_on_use() -> None:
    facade = (PACKAGE / "__init__.py").read_text()
    running = _modules(_at_run_time(facade), ("optaxtricks",))
    only = _modules(facade, ("optaxtricks",)) - running
    assert only == {("optaxtricks", room) for room in ON_USE}


@each_file
def test_only_public_names_of_the_dependencies(path: Path) -> None:
    room = (*path.parent.relative_to(PACKAGE).parts, "")[0]
    extra = {ON_USE[room]} if room in ON_USE else set()
    allowed = OUTSIDE | {"optaxtricks"} | extra
    for name in _imports(path):
        assert name[0] in allowed, name
        private = [part for part in name[1:] if part.startswith("_")]
        assert not private or name[0] in ("optaxtricks", "__future__"), name


@each_file
def test_no_file_is_above_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_every_room_is_known() -> None:
    rooms = {path.parent.relative_to(PACKAGE).parts[:1] for path in FILES}
    assert {room[0] for room in rooms if room} <= set(MAY_IMPORT)


def _printed(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_importing_the_package_imports_no_extra() -> None:
    code = (
        "import sys, optaxtricks; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    loaded = set(_printed(code).split())
    assert "optaxtricks" in loaded
    extras = {"flax", "rich", "matplotlib", "orbax", "tokenizers", "safetensors"}
    assert not loaded & extras


@pytest.mark.parametrize(
    ("use", "package", "extra"),
    [("nn.RowEmbed", "flax", "flax"), ("plots.update_rms", "matplotlib", "plots")],
)
def test_a_room_with_an_extra_opens_on_use_and_names_it(
    use: str, package: str, extra: str
) -> None:
    room, _, name = use.partition(".")
    assert (
        _printed(f"import optaxtricks as ot\nprint(ot.{use}.__name__)") == f"{name}\n"
    )
    missing = (
        f"import sys\nsys.modules['{package}'] = None\nimport optaxtricks as ot\n"
        f"try:\n  ot.{room}\nexcept ImportError as error:\n  print(error)"
    )
    assert f"pip install 'optaxtricks[{extra}]'" in _printed(missing)


def test_other_names_are_an_error() -> None:
    name = "no"
    with pytest.raises(AttributeError, match="'optaxtricks' has no attribute 'no'"):
        getattr(optaxtricks, name)
