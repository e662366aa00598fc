"""What the card's benchmark does where time, memory or the card is missing."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

from benchmarks import bench_card
from benchmarks.bench_card import rows_within
from benchmarks.card_sides import SIDES, Side


class Clock:
    """Moves only when something is measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _sides(*names: str) -> list[Side]:
    return [Side(name, build=pytest.fail) for name in names]


def _raising(message: str) -> Callable[[Side], dict[str, Any]]:
    def measure(side: Side) -> dict[str, Any]:
        if side.name == "large":
            raise jax.errors.JaxRuntimeError(message)
        return {"ms": 1.0}

    return measure


def test_what_has_no_time_left_says_so():
    clock = Clock()

    def measure(side: Side) -> dict[str, Any]:
        clock.now += {"slow": 4.0}.get(side.name, 1.0)
        return {"ms": 1.0}

    sides = _sides("first", "slow", "fits", "last", "after")
    rows = list(rows_within(10.0, sides, measure, clock))
    # After "fits" 6 of 10 seconds are spent, and the slowest side took 4.
    assert [row["side"] for row in rows if "ms" in row] == [
        "first",
        "slow",
        "fits",
        "last",
    ]
    assert rows[-1] == {"side": "after", "skipped": "time: 7 of 10 s are spent"}


def test_what_has_no_memory_says_so_and_the_others_are_measured():
    measure = _raising("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nMore")
    rows = list(rows_within(10.0, _sides("large", "small"), measure))
    reason = "memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."
    assert rows == [{"side": "large", "skipped": reason}, {"side": "small", "ms": 1.0}]


def test_another_failure_is_none_of_memory():
    rows = list(rows_within(10.0, _sides("large", "small"), _raising("INTERNAL: no")))
    assert rows[0] == {"side": "large", "failed": "INTERNAL: no"}
    assert "ms" in rows[1]


def test_an_error_of_ours_is_not_hidden():
    def measure(side: Side) -> dict[str, Any]:
        raise KeyError(side.name)

    with pytest.raises(KeyError, match="side"):
        list(rows_within(10.0, _sides("side"), measure))


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is one")
def test_without_a_gpu_one_line_says_so():
    with pytest.raises(SystemExit, match=r"^bench_card: JAX finds no GPU[^\n]*$"):
        bench_card.main(["--gpu"])


def test_a_side_is_compared_with_an_earlier_one():
    names = [side.name for side in SIDES]
    assert len(set(names)) == len(names)
    for place, side in enumerate(SIDES):
        assert side.base is None or side.base in names[:place]
