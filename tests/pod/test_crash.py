"""Killed at any moment, a run goes on to the bits of one that was not."""

import random
import time
from pathlib import Path

import pytest

from .conftest import STEPS, Unbroken
from .runs import Run, finish, saved, started, unfinished, wait_for

KILLS = 24
LONG = 60


def _assert_same_run(out: Path, want: Path, last: int) -> None:
    """The same log and, at the end, the same parameters and state, to the bit."""
    name = "metrics.jsonl"
    assert (out / name).read_text() == (want / name).read_text()
    ours, theirs = saved(out, last), saved(want, last)
    assert list(ours) == list(theirs)
    for path, leaf in theirs.items():
        assert leaf.tobytes() == ours[path].tobytes(), path


def _lines(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_between_and_within_checkpoints(
    unbroken: Unbroken, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    flags = unbroken.flags(out)
    for condition in (lambda: _lines(out) >= 3, lambda: unfinished(out)):
        run = Run(flags, devices=4, log=log)
        with started(run):
            wait_for(condition, run)
            assert run.kill()
    said = finish(flags, devices=4, log=log)
    assert f"of {STEPS}." in said
    _assert_same_run(out, unbroken.out, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("unbroken", ["everything"], indirect=True)
def test_killed_many_times(unbroken: Unbroken, tmp_path: Path) -> None:
    want, out, log = tmp_path / "want", tmp_path / "out", tmp_path / "log"
    longer = {"steps": LONG, "mesh": "data=1", "keep": 2}
    finish(unbroken.flags(want, **longer), devices=1, log=tmp_path / "want.log")
    flags = unbroken.flags(out, **longer)
    rng = random.Random(0)
    kills = within = 0
    for life in range(KILLS):
        run = Run(flags, devices=1, log=log)
        with started(run):
            goal = _lines(out) + rng.randint(0, 2)
            writing = life % 2 == 0
            wait_for(lambda: _lines(out) > goal, run)  # noqa: B023
            if writing:
                wait_for(lambda: unfinished(out), run)
            time.sleep(rng.choice((0.0, 0.002, 0.01, 0.03)))
            kills += run.kill()
        within += unfinished(out)
    assert kills >= 20 and within >= 5, (kills, within)
    finish(flags, devices=1, log=log)
    _assert_same_run(out, want, LONG)
