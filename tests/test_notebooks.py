"""Each notebook is its script with outputs, fit for any machine; each script runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
# Folders that are a machine's own, and addresses of objects.
LOCAL = re.compile(r"/(home|root|tmp|usr|opt|work|Users)/|[A-Z]:\\|0x[0-9a-f]{8}")
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def _script_cells(source: str) -> list[tuple[str, str]]:
    """Kind and text of the cells of a script in percent format."""
    parts = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)[1:]
    cells = []
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        if title.strip() == "[markdown]":
            lines = [re.sub("^# ?", "", line) for line in text.strip().split("\n")]
            cells.append(("markdown", "\n".join(lines)))
        else:
            cells.append(("code", text.strip()))
    return cells


def _notebook(script: Path) -> dict[str, Any]:
    return json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))


def _notebook_cells(notebook: dict[str, Any]) -> list[tuple[str, str]]:
    cells = notebook["cells"]
    return [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells]


def test_there_are_pairs_only() -> None:
    assert len(SCRIPTS) == 6
    names = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert names == {path.stem for path in SCRIPTS}


def test_the_reader_of_scripts_sees_every_cell() -> None:
    source = "# ---\n# %% [markdown]\n# # A\n#\n# b\n\n# %%\nx = 1\n\n\n# %%\ny = 2\n"
    want = [("markdown", "# A\n\nb"), ("code", "x = 1"), ("code", "y = 2")]
    assert _script_cells(source) == want


@each_script
def test_notebook_has_the_cells_of_its_script(script: Path) -> None:
    wanted = _script_cells(script.read_text(encoding="utf-8"))
    assert _notebook_cells(_notebook(script)) == wanted


@each_script
def test_notebook_names_no_machine(script: Path) -> None:
    notebook = _notebook(script)
    assert notebook["nbformat"] == 4
    assert set(notebook["metadata"]) == {"jupytext", "kernelspec"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert not LOCAL.search(json.dumps(notebook["metadata"]))
    for cell in notebook["cells"]:
        # A time of execution would be here.
        assert not cell["metadata"]


@each_script
def test_stored_outputs_are_complete_and_free_of_warnings(script: Path) -> None:
    cells = [cell for cell in _notebook(script)["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    pictures = 0
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] in ("stream", "display_data")
        assert output.get("name") != "stderr"
        data = output.get("data", {})
        pictures += "image/png" in data
        text = "".join(output.get("text", [])) + "".join(data.get("text/plain", []))
        assert not LOCAL.search(text), text
        assert "Warning" not in text
    assert pictures


@pytest.mark.slow
@each_script
def test_script_runs_at_a_small_size(script: Path, tmp_path: Path) -> None:
    settings = {
        "OPTAXTRICKS_SMALL": "1",
        "MPLBACKEND": "Agg",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not any(tmp_path.iterdir())
