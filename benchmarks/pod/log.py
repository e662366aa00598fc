"""A run's metrics, one JSON line a step, the same after a crash as without one."""

import json
from pathlib import Path
from typing import Any

import jax

from ..finetune.experiment import write_atomically


class Log:
    """Lines of a file, written by one process.

    The newest line waits for the next one, so that the loop need not wait for a step.

    Args:
      path: the file; its lines after step `start` are dropped, as those steps are
        taken again.
      start: the number of steps taken before.
      active: whether this process is the one that writes.
    """

    def __init__(self, path: Path, start: int, *, active: bool):
        self._path, self._active = path, active
        self._waiting: tuple[int, Any] | None = None
        self.last: dict[str, float] = {}
        if active:
            lines = path.read_text().splitlines() if path.exists() else []
            kept = [line for line in lines if _step(line) <= start]
            self.last = json.loads(kept[-1]) if kept else {}
            text = "".join(f"{line}\n" for line in kept)
            write_atomically(path, text.encode())

    def add(self, step: int, scalars: dict[str, jax.Array]) -> None:
        """Takes a step's scalars; writes those that came before."""
        self.flush()
        self._waiting = step, scalars

    def flush(self) -> None:
        """Writes what waits."""
        if self._waiting is None:
            return
        step, scalars = self._waiting
        self._waiting = None
        if self._active:
            values = {name: float(value) for name, value in scalars.items()}
            self.last = {"step": step, **values}
            with self._path.open("a") as file:
                file.write(json.dumps(self.last) + "\n")


def _step(line: str) -> float:
    """The step of a line; infinity for one that a crash cut off."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
