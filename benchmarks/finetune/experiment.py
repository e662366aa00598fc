"""Which runs a comparison needs, and the store of those already finished."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import jax

from .fingerprint import fingerprint
from .fisher import FISHER_EXAMPLES
from .problem import HEAD_SCALE, KEY_KIND
from .recipes import RECIPES
from .train import WARM_UP

# Raise this when training changes in a way that the fingerprint cannot see.
REVISION = 1
GRID_SEED, SEARCH_REACH = 1000, 2**5
# Read at import: the file may be edited while a long comparison runs.
FINGERPRINTS = {name: fingerprint(recipe) for name, recipe in RECIPES.items()}
PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy", "tokenizers", "optaxtricks")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run, before it is done."""

    recipe: str
    learning_rate: float
    seed: int
    evaluations: int


class Store:
    """Finished runs, one small JSON file each, found again by fingerprint."""

    def __init__(self, folder: pathlib.Path, common: dict[str, Any]):
        self._folder, self._common = folder, common

    def path(self, run: Run) -> pathlib.Path:
        """Where this run's record lies, finished or not."""
        content = {
            **self._common,
            **dataclasses.asdict(run),
            "recipe_fingerprint": FINGERPRINTS[run.recipe],
        }
        text = json.dumps(content, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        name = f"{run.recipe}-lr{run.learning_rate:g}-seed{run.seed}-{digest}.json"
        return self._folder / name

    def find(self, run: Run) -> dict[str, Any] | None:
        """The record of a finished run."""
        try:
            return json.loads(self.path(run).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def get(self, run: Run, train: Callable[[Run], dict[str, Any]]) -> dict[str, Any]:
        """The record of a run, training it if it is not there yet."""
        if (record := self.find(run)) is None:
            record = {**dataclasses.asdict(run), "date": _today(), **train(run)}
            write_atomically(self.path(run), json.dumps(record, indent=1).encode())
        return record


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """A reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        pathlib.Path(temporary).chmod(0o644)  # mkstemp's 0600 is for secrets
        pathlib.Path(temporary).replace(path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def common_settings(
    *, checkpoint: str, task: str, steps: int, batch_size: int, length: int
) -> dict[str, Any]:
    """All that determines a run beside its recipe, learning rate and seed."""
    return {
        "revision": REVISION,
        "checkpoint": checkpoint,
        "task": task,
        "steps": steps,
        "batch_size": batch_size,
        "length": length,
        "warm_up": WARM_UP,
        "head_scale": HEAD_SCALE,
        "fisher_examples": FISHER_EXAMPLES,
        "dropout_key": KEY_KIND,
        "environment": environment(),
    }


def search_runs(names: Iterable[str], records: list[dict[str, Any]]) -> list[Run]:
    """What the learning-rate search has to run next; nothing once it is done.

    Rates are powers of two apart. The search begins at a recipe's default and its two
    neighbours, and goes on until all neighbours of the best are known to be worse, or
    out of reach. So rates at which nothing is learned do not end it. Its one seed is
    not used afterwards.
    """
    return [
        Run(name, rate, GRID_SEED, 1)
        for name in names
        for rate in _next_rates(
            RECIPES[name].learning_rate,
            {r["learning_rate"]: r["accuracy"] for r in records if r["recipe"] == name},
        )
    ]


def _next_rates(default: float, tried: dict[float, float]) -> list[float]:
    top = max(tried.values(), default=None)
    best = [rate for rate, accuracy in tried.items() if accuracy == top] or [default]
    near = {rate * step for rate in best for step in (0.5, 1.0, 2.0)}
    least, most = default / SEARCH_REACH, default * SEARCH_REACH
    return sorted(rate for rate in near - set(tried) if least <= rate <= most)


def best_rates(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """By recipe, the rate of highest dev accuracy.

    Of equals the nearest to the recipe's default, and of two as near the smaller.
    """
    best: dict[str, tuple[float, float, float]] = {}
    for record in records:
        name, rate = record["recipe"], record["learning_rate"]
        distance = abs(math.log(rate / RECIPES[name].learning_rate))
        rank = (record["accuracy"], -distance, -rate)
        best[name] = max(best.get(name, rank), rank)
    return {name: -rate for name, (_, _, rate) in best.items()}


def seed_runs(rates: dict[str, float], seeds: int, evaluations: int) -> list[Run]:
    """The comparison itself. Seed by seed, so that an early look is a fair one."""
    return [
        Run(name, rate, seed, evaluations)
        for seed in range(seeds)
        for name, rate in rates.items()
    ]
