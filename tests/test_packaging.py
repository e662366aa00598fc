"""What `make package` has put into dist/: contents, size, and the wheel on its own."""

import subprocess
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.test_readme import BLOCKS

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"optaxtricks-{PROJECT['version']}"
LARGEST = 300_000
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DIST.exists(), reason="`make package` builds it"),
]


@pytest.fixture(scope="module")
def wheel() -> Path:
    (path,) = DIST.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    package = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "optaxtricks").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    about = {name for name in held if name.startswith(f"{NAME}.dist-info/")}
    assert f"{NAME}.dist-info/licenses/LICENSE" in about
    assert {name: held[name] for name in held.keys() - about} == package
    assert "optaxtricks/py.typed" in package


def test_the_source_archive_holds_what_the_project_is_made_of() -> None:
    (path,) = DIST.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        held = set(archive.getnames())
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    wanted = {name for name in tracked.split("\n") if name and name[0] != "."}
    assert {f"{NAME}/{name}" for name in wanted} <= held


def test_the_wheel_alone_runs_the_first_example(wheel: Path) -> None:
    home = ROOT / "build" / "fresh"
    venv.create(home, clear=True, with_pip=True)
    python = home / "bin" / "python"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", wheel], check=True)
    example = (
        f"{BLOCKS[0]}\nimport importlib.metadata\n"
        "print(ot.__file__, importlib.metadata.version('optaxtricks'))"
    )
    # Isolated, so that neither this checkout nor the caller's packages are seen.
    done = subprocess.check_output([python, "-I", "-c", example], cwd=home, text=True)
    file, version = done.split()
    assert Path(file).is_relative_to(home)
    assert version == PROJECT["version"]
