"""The command from end to end, its resumption, and what it reports."""

import json
import pathlib
import re

import pytest

from benchmarks.finetune import report
from benchmarks.finetune.__main__ import main
from benchmarks.finetune.experiment import GRID_SEED, best_rates
from benchmarks.finetune.recipes import RECIPES
from benchmarks.finetune.train import Program

from .conftest import DATA

pytestmark = pytest.mark.usefixtures("training")
COSTS = ("trained_parameters", "optimizer_state_bytes", "peak_temporary_bytes")
COSTS += ("step_ms", "epoch_seconds", "first_epoch_loss", "caching_seconds")


@pytest.fixture
def command(checkpoint, task, tmp_path):
    """Runs the command on the tiny checkpoint and task."""

    def run(*arguments):
        base = {"--checkpoint": checkpoint, "--task": task, "--out": tmp_path / "out"}
        base |= {"--length": 8, "--batch-size": 8}
        given = [str(part) for pair in base.items() for part in pair]
        code = main([*given, *map(str, arguments)])
        results = tmp_path / "out" / "results.json"
        return code, json.loads(results.read_text()) if results.exists() else None

    return run


@pytest.fixture
def calls(monkeypatch):
    """Trainings asked for; none is done, as these tests are about which."""
    asked = []

    def pretend(self, *, learning_rate, seed, **others):
        asked.append((learning_rate, seed))
        accuracy = 0.5 + learning_rate / 10 + seed / 10_000
        record = {"accuracy": accuracy, "curve": [[1, accuracy]], "train_loss": 1.0}
        return None, record | dict.fromkeys(COSTS, 1)

    monkeypatch.setattr(Program, "run", pretend)
    return asked


def test_quick_run_writes_results_and_plot(command, tmp_path, capsys):
    code, results = command("--steps", 9, "--recipes", "head", "full")
    assert code == 0
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"runs", "results.json", "comparison.png"}
    assert (tmp_path / "out" / "comparison.png").read_bytes()[1:4] == b"PNG"
    assert list(results["recipes"]) == ["head", "full"]
    entry = results["recipes"]["full"]
    assert [p["step"] for p in entry["curve"]] == [4, 9]
    assert entry["accuracy"]["mean"] == entry["curve"][-1]["mean"]
    assert entry["environment"]["packages"]["jax"]
    assert results["task"]["name"] == "task" and re.match(r"\d{4}-", entry["date"])
    assert str(tmp_path) not in json.dumps(results)
    out = capsys.readouterr().out
    assert "one seed: no statement" in out and "ms/step" in out


def test_finished_runs_are_used_again(command, calls, tmp_path):
    quick = ("--steps", 2, "--recipes", "head")
    _, first = command(*quick)
    assert len(calls) == 1
    _, second = command(*quick)
    assert len(calls) == 1
    assert first == second
    command(*quick, "--learning-rate", 1e-3)
    assert len(calls) == 2
    command(*quick, "--length", 9)
    assert len(calls) == 3
    command(*quick, "--seeds", 2)
    assert [seed for _, seed in calls] == [0, 0, 0, 1]
    for run in (tmp_path / "out" / "runs").iterdir():
        run.write_text("{")
    command(*quick)
    assert len(calls) == 5


def test_changed_data_is_trained_on_again(command, calls, task):
    quick = ("--steps", 2, "--recipes", "head")
    command(*quick)
    rows = (task / "train.jsonl").read_text()
    (task / "train.jsonl").write_text(rows.replace("variance", "value"))
    command(*quick)
    assert len(calls) == 2


def test_an_interruption_keeps_finished_runs(
    command, calls, monkeypatch, tmp_path, capsys
):
    counted = Program.run

    def interrupted(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return counted(*args, **kwargs)

    arguments = ("--steps", 2, "--recipes", "head", "--seeds", 3)
    with monkeypatch.context() as patch:
        patch.setattr(Program, "run", interrupted)
        assert command(*arguments) == (130, None)
    assert "finished runs are kept" in capsys.readouterr().err
    files = sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert len(files) == 2 and all(name.startswith("head-lr") for name in files)
    code, results = command(*arguments)
    assert code == 0 and len(calls) == 3
    assert results["recipes"]["head"]["seeds"] == [0, 1, 2]


def test_full_run_searches_rates_on_a_seed_of_its_own(command, calls, capsys):
    code, results = command(
        "--full", "--steps", 2, "--seeds", 2, "--recipes", "head", "full"
    )
    assert code == 0
    seeds = [seed for _, seed in calls]
    size = len(RECIPES["full"].grid)
    assert seeds == [GRID_SEED] * 2 * size + [0, 0, 1, 1]
    scores = results["learning_rate_grid"]["dev_accuracy"]["full"]
    assert len(scores) == size
    # The pretended accuracy rises with the rate, so the grid's edge is chosen.
    assert results["recipes"]["full"]["learning_rate"] == max(RECIPES["full"].grid)
    assert (
        "full: the best learning rate is at its grid's edge" in capsys.readouterr().out
    )
    gap = results["recipes"]["head"]["difference_to_full"]
    assert gap["standard_error"] is not None


def test_roberta_with_pairs_of_texts(command, tmp_path, task):
    for split in ("train", "dev"):
        path = task / f"{split}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"text_b": "close the file", "label": 1} for row in rows]
        rows[0]["label"] = 0
        path.write_text("\n".join(map(json.dumps, rows)))
    roberta = DATA / "tiny_roberta"
    code, results = command(
        "--checkpoint", roberta, "--steps", 2, "--recipes", "head", "--length", 16
    )
    assert code == 0
    assert results["task"]["classes"] == 2


def test_best_rate_prefers_the_smaller_of_equals():
    records = [
        {"recipe": "full", "learning_rate": rate, "accuracy": accuracy}
        for rate, accuracy in [(4e-4, 0.8), (1e-4, 0.7), (2e-4, 0.8)]
    ]
    assert best_rates(records) == {"full": 2e-4}


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        ([0.04, 0.05, 0.06], "better"),
        ([-0.04, -0.05, -0.06], "worse"),
        ([0.0, 0.0, 0.06], "no difference shown"),
        ([0.0, 0.0, 0.0], "no difference shown"),
        ([0.5], "one seed: no statement"),
    ],
)
def test_a_verdict_needs_two_standard_errors(gaps, verdict):
    records = [
        {"recipe": name, "learning_rate": 1.0, "seed": seed, "date": "2026-01-01"}
        | {"accuracy": 0.5 + extra, "curve": [[1, 0.5 + extra]]}
        | dict.fromkeys(COSTS, 1)
        for seed, gap in enumerate(gaps)
        for name, extra in (("full", 0.0), ("other", gap))
    ]
    summary = report.summarise(records)
    assert summary["full"]["difference_to_full"] is None
    assert summary["other"]["difference_to_full"]["verdict"] == verdict


def test_no_file_names_a_place_on_a_machine():
    source = pathlib.Path(report.__file__).parent
    for path in [*source.glob("*.py"), *DATA.rglob("*.json")]:
        assert not re.search(r"/(home|root)/", path.read_text())
