"""Runs the percent scripts beside it and stores each with its outputs as a notebook.

``python notebooks/run.py`` runs all of them, ``python notebooks/run.py 01 05`` those
whose names begin so.
"""

import os
import pathlib
import sys

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
SECONDS = 1800


def run(script: pathlib.Path) -> None:
    """Executes one script; writes nothing if a cell fails or prints a warning."""
    notebook = jupytext.read(script)
    notebook.metadata["jupytext"] = {"formats": "ipynb,py:percent"}
    for number, cell in enumerate(notebook.cells):
        # Random names would change at every run; blank lines are the script's affair.
        cell["id"], cell["metadata"] = f"cell-{number}", {}
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    notebook.metadata.pop("language_info", None)  # the version of the interpreter
    check(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, script.with_suffix(".ipynb"))


def check(notebook: nbformat.NotebookNode) -> None:
    """Rejects outputs that are for this machine alone."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            text = str(output.get("text", output.get("data", {}).get("text/plain", "")))
            if output.get("name") == "stderr" or str(ROOT) in text:
                raise SystemExit(f"cell {number} printed a warning or a path:\n{text}")


def main(names: list[str]) -> None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for script in sorted(FOLDER.glob("[0-9]*.py")):
        if not names or script.name.startswith(tuple(names)):
            print(script.name, flush=True)
            run(script)


if __name__ == "__main__":
    main(sys.argv[1:])
