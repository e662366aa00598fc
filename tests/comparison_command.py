"""A command that compares trainings: what it writes when run once, what it refuses."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

Command = Callable[[list[str]], int]


def run_tiny(command: Command, out: Path, *arguments: str) -> Any:
    """Runs a command at its smallest size; gives the content of its JSON file.

    Compilation takes nearly all of the time, so it does not optimise.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"):
        code = command(["--size", "tiny", *arguments, "--out", str(out)])
    jax.config.update("jax_disable_most_optimizations", False)
    assert code == 0
    (path,) = out.glob("*.json")
    return json.loads(path.read_text())


def assert_written(out: Path, name: str, results: Any) -> None:
    """A plot beside the JSON file, which holds finite numbers, and no local path."""
    assert sorted(p.name for p in out.iterdir()) == [f"{name}.json", f"{name}.png"]
    assert (out / f"{name}.png").read_bytes()[1:4] == b"PNG"
    assert all(math.isfinite(x) for x in _numbers(results))
    assert str(out) not in json.dumps(results)


def _numbers(tree: Any) -> Iterator[float]:
    """Every number of a JSON value."""
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _numbers(value)
    elif isinstance(tree, int | float):
        yield tree


def assert_refused(
    command: Command,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line on the standard error, and nothing else."""
    assert command(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
