"""One unbroken run, which the tests of this folder compare with."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from .runs import finish, flags

STEPS = 8


@dataclasses.dataclass(frozen=True)
class Unbroken:
    """A finished run, and how to start another that should equal it."""

    recipe: str
    out: Path
    cache: Path

    def flags(self, out: Path, **changes: Any) -> dict[str, Any]:
        """Flags of the same run into another folder."""
        return flags(self.recipe, self.cache, out, steps=STEPS, keep=STEPS, **changes)


@pytest.fixture(scope="session", params=["dropout_lion"])
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Unbroken:
    """One process with four devices, from the first step to the last."""
    root = tmp_path_factory.mktemp("unbroken")
    run = Unbroken(request.param, root / "out", root / "cache")
    finish(run.flags(run.out), devices=4, log=root / "log")
    return run
