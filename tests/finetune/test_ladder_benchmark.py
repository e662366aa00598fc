"""The benchmark of ladders, at its smallest size."""

import json
import math

import pytest

from benchmarks.finetune.errors import InputError
from benchmarks.ladder import __main__ as command
from benchmarks.ladder import starts, steps

pytestmark = pytest.mark.usefixtures("training")


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_cached_ladder_does_a_small_part_of_the_work():
    config = steps.encoder_config(layers=2, width=32, vocabulary=128, heads=2)
    problem = steps.random_problem(config, batch_size=4, length=8)
    full, cached = (steps.RecipeStep(problem, n) for n in ("full", "ladder_cached"))
    assert cached.costs["GFLOP"] < 0.2 * full.costs["GFLOP"]
    assert cached.costs["temp MB"] < full.costs["temp MB"]
    losses = [float(step()) for step in (full, cached) for _ in range(2)]
    assert all(math.isfinite(loss) for loss in losses)
    assert cached.trained < full.trained


@pytest.fixture
def pretended(monkeypatch):
    """Rows without the work behind them."""
    monkeypatch.setattr(command, "cost_rows", lambda size: [{"recipe": "full"}])
    monkeypatch.setattr(starts, "rows", lambda size: [{"side layers": "fresh"}])


def test_json_is_all_that_is_printed(pretended, capsys, tmp_path):
    arguments = ["--size", "tiny", "--json", "--out", str(tmp_path)]
    assert command.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ladder"] == [{"recipe": "full"}]
    assert printed["ladder_start"] == [{"side layers": "fresh"}]
    assert printed["environment"]["jax"]
    written = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(written) == {"ladder.json", "ladder_start.json"}
    assert written["ladder.json"]["rows"] == printed["ladder"]


def test_tables_are_printed_without_it(pretended, capsys):
    assert command.main(["--size", "tiny"]) == 0
    assert "side layers" in capsys.readouterr().out


def test_a_missing_checkpoint_is_said_before_any_work(pretended, monkeypatch, capsys):
    def missing(size):
        raise InputError("no checkpoint")

    monkeypatch.setattr(starts, "rows", missing)
    assert command.main([]) == 2
    assert capsys.readouterr() == ("", "error: no checkpoint\n")
