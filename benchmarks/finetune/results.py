"""A table that grows: recipes measured now join those measured before."""

import json
import pathlib
from typing import Any

from . import report
from .experiment import FINGERPRINTS

Results = dict[str, Any]


def merged(path: pathlib.Path, new: Results) -> tuple[Results, list[str]]:
    """New results with the entries of an earlier file, and notes on what was dropped.

    An earlier entry stays, with its own date, environment and learning-rate grid, if
    it is of a recipe that is not measured now, that has not changed since, and if the
    file has the same settings, checkpoint and task.
    """
    old = _read(path)
    if old is None:
        return new, []
    new = json.loads(json.dumps(new))
    if differing := [key for key in _SAME if old.get(key) != new[key]]:
        return new, [
            f"results of another call were replaced: {_why(old, new, differing)}"
        ]
    kept, notes = {}, []
    for name, entry in old["recipes"].items():
        if name in new["recipes"]:
            kept[name] = new["recipes"][name]  # in its old place
        elif FINGERPRINTS.get(name) == entry["fingerprint"]:
            kept[name] = entry
        else:
            notes.append(f"{name} has changed since {entry['date']}: its entry is gone")
    grids = [old["learning_rate_grid"], new["learning_rate_grid"]]
    return {
        **new,
        "learning_rate_grid": _joined(grids, kept | new["recipes"]),
        "recipes": report.compared(kept | new["recipes"]),
    }, notes


_SAME = ("settings", "checkpoint", "task")


def _read(path: pathlib.Path) -> Results | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _why(old: Results, new: Results, keys: list[str]) -> str:
    """The settings that differ, by name."""
    names = []
    for key in keys:
        before, now = old.get(key), new[key]
        if isinstance(before, dict) and isinstance(now, dict):
            names += [k for k in {**before, **now} if before.get(k) != now.get(k)]
        else:
            names.append(key)
    return ", ".join(dict.fromkeys(names))


def _joined(grids: list[Results | None], recipes: Results) -> Results | None:
    present = [grid for grid in grids if grid]
    scores = {n: s for grid in present for n, s in grid["dev_accuracy"].items()}
    scores = {name: scores[name] for name in recipes if name in scores}
    return {"seed": present[-1]["seed"], "dev_accuracy": scores} if present else None
