"""Killed at any moment, a run goes on to the bits of one that was not."""

import random
import time
from pathlib import Path

import pytest

from .conftest import STEPS, Unbroken
from .runs import Run, finish, flags, saved, started, unfinished, wait_for

KILLS = 9
LONG = 40


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
    again = unbroken.flags(out)
    # With its third line a run has finished its first checkpoint.
    for lines, condition in ((3, lambda: True), (1, lambda: unfinished(out))):
        run = Run(again, devices=4, log=log)
        with started(run):
            goal = _lines(out) + lines
            wait_for(lambda goal=goal: _lines(out) >= goal, run)
            wait_for(condition, run)
            assert run.kill()
    said = finish(again, devices=4, log=log)
    assert f"of {STEPS}." in said
    _assert_same_run(out, unbroken.out, STEPS)


@pytest.mark.slow
def test_killed_many_times(tmp_path: Path) -> None:
    want, out, log = tmp_path / "want", tmp_path / "out", tmp_path / "log"
    given = {"steps": LONG, "mesh": "data=1", "keep": 2}
    make = lambda out: flags("everything", tmp_path / "cache", out, **given)
    finish(make(want), devices=1, log=tmp_path / "want.log")
    rng = random.Random(0)
    kills = within = 0
    for life in range(KILLS):
        run = Run(make(out), devices=1, log=log)
        with started(run):
            goal = _lines(out) + rng.randint(1, 3)
            wait_for(lambda goal=goal: _lines(out) >= goal, run)
            if life % 2:
                wait_for(lambda: unfinished(out), run)
            time.sleep(rng.choice((0.0, 0.002, 0.01, 0.03)))
            kills += run.kill()
        within += unfinished(out)
    assert kills == KILLS and within >= 2, (kills, within)
    finish(make(out), devices=1, log=log)
    _assert_same_run(out, want, LONG)
