"""The benchmark of ladders, at its smallest size."""

import math

import pytest

from benchmarks.ladder import starts, steps

pytestmark = pytest.mark.usefixtures("training")


def test_both_starts_have_a_finite_loss_for_every_seed():
    fresh, pruned = starts.rows("tiny")
    assert (fresh["side layers"], pruned["side layers"]) == ("fresh", "pruned")
    assert fresh["seeds"] == pruned["seeds"] == starts.SEEDS["tiny"]
    # Two classes; the ladder's start is the encoder with a small head.
    for row in (fresh, pruned):
        assert row["loss"] == pytest.approx(math.log(2), abs=0.2)
        assert math.isfinite(row["loss, standard error"])
    gap = pruned["loss"] - fresh["loss"]
    assert pruned["pruned - fresh"] == pytest.approx(gap, abs=1e-6)


def test_a_cached_ladder_does_a_small_part_of_the_work():
    config = steps.encoder_config(layers=2, width=32, vocabulary=128, heads=2)
    problem = steps.random_problem(config, batch_size=4, length=8)
    full, cached = (steps.RecipeStep(problem, n) for n in ("full", "ladder_cached"))
    assert cached.costs["GFLOP"] < 0.2 * full.costs["GFLOP"]
    assert cached.costs["temp MB"] < full.costs["temp MB"]
    losses = [float(step()) for step in (full, cached) for _ in range(2)]
    assert all(math.isfinite(loss) for loss in losses)
    assert cached.trained < full.trained
