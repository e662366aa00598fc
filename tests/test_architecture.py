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
    "nn": {"_core", "selection"},
}
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
        sideways = inside and file != "__init__" and room not in ("_core", "nn")
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
        # The facade: any room but nn, which needs Flax.
        targets = {name[1] for name in _imports(path) if name[0] == "optaxtricks"}
        assert targets <= set(MAY_IMPORT) - {"nn"}


@each_file
def test_only_public_names_of_the_dependencies(path: Path) -> None:
    room = path.parent.relative_to(PACKAGE).parts[:1]
    allowed = OUTSIDE | {"optaxtricks"} | ({"flax"} if room == ("nn",) else set())
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


def test_the_room_for_flax_opens_on_use_and_names_the_extra() -> None:
    use = "import optaxtricks as ot\nprint(ot.nn.RowEmbed.__name__)"
    assert _printed(use) == "RowEmbed\n"
    missing = (
        "import sys\nsys.modules['flax'] = None\nimport optaxtricks as ot\n"
        "try:\n  ot.nn\nexcept ImportError as error:\n  print(error)"
    )
    assert "pip install 'optaxtricks[flax]'" in _printed(missing)
    with pytest.raises(AttributeError, match="'optaxtricks' has no attribute 'no'"):
        _ = optaxtricks.no
