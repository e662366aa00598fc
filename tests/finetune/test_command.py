"""The command from end to end, its resumption, and what it reports."""

import json
import math
import pathlib
import re

import pytest

from benchmarks.finetune import report
from benchmarks.finetune.__main__ import main
from benchmarks.finetune.experiment import GRID_SEED, best_rates, search_runs
from benchmarks.finetune.recipes import RECIPES
from benchmarks.finetune.train import Program

from .conftest import DATA

pytestmark = pytest.mark.usefixtures("training")
COSTS = ("trained_parameters", "optimizer_state_bytes", "peak_temporary_bytes")
BEST_RATE = 1.6e-3  # as the pretended trainings have it
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
        accuracy = 0.5 - abs(math.log2(learning_rate / BEST_RATE)) / 100
        accuracy += seed / 10_000
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


@pytest.mark.slow
def test_full_run_searches_rates_on_a_seed_of_its_own(command, calls):
    code, results = command(
        "--full", "--steps", 2, "--seeds", 2, "--recipes", "fish", "full"
    )
    assert code == 0
    scores = results["learning_rate_grid"]["dev_accuracy"]
    tried = {name: sorted(map(float, scores[name])) for name in scores}
    # Up and down from the recipes' own rates, until both neighbours are worse.
    assert tried["full"] == [2e-4, 4e-4, 8e-4, BEST_RATE, 2 * BEST_RATE]
    assert tried["fish"] == [1e-3, 2e-3, 4e-3, 8e-3]
    rates = {name: results["recipes"][name]["learning_rate"] for name in scores}
    assert rates == {"full": BEST_RATE, "fish": 2e-3}
    searched = sum(map(len, tried.values()))
    assert [seed for _, seed in calls] == [GRID_SEED] * searched + [0, 0, 1, 1]
    gap = results["recipes"]["fish"]["difference_to_full"]
    assert gap["standard_error"] is not None


@pytest.mark.slow
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


def searched(name, accuracy):
    """The rates that are tried, in their order, and the best."""
    records = []
    while runs := search_runs([name], records):
        records += [
            {"recipe": name, "learning_rate": rate, "accuracy": accuracy(rate)}
            for rate in (run.learning_rate for run in runs)
        ]
    return [record["learning_rate"] for record in records], best_rates(records)[name]


def test_of_equal_rates_the_nearest_to_the_default_is_best_then_the_smaller():
    def best(*rates):
        records = [
            {"recipe": "full", "learning_rate": rate, "accuracy": 0.8} for rate in rates
        ]
        return best_rates([*records, {**records[0], "accuracy": 0.7}])["full"]

    assert best(1e-4, 8e-4) == 8e-4 and best(8e-4, 2e-4) == 2e-4


@pytest.mark.parametrize("name", RECIPES)
def test_a_search_where_nothing_is_learned_ends_and_keeps_the_default(name):
    default = RECIPES[name].learning_rate
    tried, best = searched(name, lambda rate: 0.5)
    assert best == default
    assert sorted(tried) == [default * 2.0**n for n in range(-5, 6)]


@pytest.mark.parametrize("peak", [2.5e-5, 1e-4, 4e-4, 1.6e-3, 6.4e-3])
def test_a_search_crosses_rates_at_which_nothing_is_learned(peak):
    tried, best = searched("full", lambda rate: max(0.5, 0.7 - abs(rate / peak - 1)))
    assert best == peak
    assert {peak / 2, peak, 2 * peak} <= set(tried) and len(set(tried)) == len(tried)


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
