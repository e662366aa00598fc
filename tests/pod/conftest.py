"""One unbroken run, which the tests of this folder compare with."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from .runs import finish

STEPS = 8


@dataclasses.dataclass(frozen=True)
class Unbroken:
    """A finished run, and how to start another that should equal it."""

    recipe: str
    out: Path
    cache: Path

    def flags(self, out: Path, **changes: Any) -> dict[str, Any]:
        """Flags of the same run into another folder."""
        return {
            "--size": "tiny",
            "--recipe": self.recipe,
            "--steps": STEPS,
            "--batch-size": 8,
            "--log-every": 1,
            "--checkpoint-every": 1,
            "--keep": STEPS,
            "--mesh": "data=2,model=2",
            "--compilation-cache": self.cache,
            "--out": out,
            **{"--" + name.replace("_", "-"): value for name, value in changes.items()},
        }


@pytest.fixture(
    scope="session",
    params=["dropout_lion", pytest.param("everything", marks=pytest.mark.slow)],
)
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Unbroken:
    """One process with four devices, from the first step to the last."""
    root = tmp_path_factory.mktemp("unbroken")
    run = Unbroken(request.param, root / "out", root / "cache")
    finish(run.flags(run.out), devices=4, log=root / "log")
    return run
