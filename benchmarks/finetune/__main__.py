"""Fine-tunes a pretrained encoder on a classification task, recipe by recipe."""

import argparse
import datetime
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import rich.console
import rich.progress

from . import report
from .checkpoint import Checkpoint, open_checkpoint
from .errors import InputError
from .experiment import (
    GRID_SEED,
    Run,
    Store,
    best_rates,
    common_settings,
    environment,
    grid_runs,
    seed_runs,
    write_atomically,
)
from .recipes import RECIPES
from .task import Task, encode, open_task
from .train import Evaluator, Masks, Problem, Program

QUICK = {"seeds": 1, "evaluations": 4}
FULL = {"seeds": 5, "evaluations": 6}


class Parser(argparse.ArgumentParser):
    """Reports bad usage like all other bad input: one line."""

    def error(self, message: str):
        raise InputError(message)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as it can be without reading a file."""
    parser = Parser(prog="python -m benchmarks.finetune", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=pathlib.Path, metavar="DIR", help="BERT or RoBERTa folder")
    add("--task", type=pathlib.Path, metavar="DIR", help="train.jsonl and dev.jsonl")
    add("--recipes", nargs="+", default=list(RECIPES), metavar="NAME")
    add("--full", action="store_true", help="rate grid, then several seeds; resumable")
    add("--steps", type=_count, default=200, help="training steps of a run")
    add("--seeds", type=_count, help="runs of each recipe (1; with --full 5)")
    add("--learning-rate", type=_rate, help="one peak rate for all recipes")
    add("--batch-size", type=_count, default=16)
    add("--length", type=_count, default=32, help="tokens of a text that are read")
    add("--out", type=pathlib.Path, metavar="DIR", help="folder for the results")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.recipes if name not in RECIPES]:
        raise InputError(f"unknown recipe {unknown[0]!r}; there are {list(RECIPES)}.")
    if options.full and options.learning_rate is not None:
        raise InputError("--learning-rate and --full exclude each other.")
    options.recipes = list(dict.fromkeys(options.recipes))
    size = FULL if options.full else QUICK
    options.seeds = options.seeds or size["seeds"]
    options.evaluations = min(size["evaluations"], options.steps)
    name = "finetune" if options.full else "finetune-quick"
    options.out = options.out or pathlib.Path("benchmarks/results") / name
    _check_writable(options.out)
    return options


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}.")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}.")
    return value


def _check_writable(out: pathlib.Path) -> None:
    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--out: {out} cannot be written.")


def prepare(options: argparse.Namespace) -> tuple[Problem, Checkpoint, Task]:
    """Reads and checks everything before any work is done."""
    checkpoint = open_checkpoint(options.checkpoint)
    if options.length > checkpoint.config.max_length:
        raise InputError(
            f"--length: {options.length} exceeds the checkpoint's "
            f"{checkpoint.config.max_length} positions."
        )
    task = open_task(options.task)
    if options.batch_size > len(task.train):
        raise InputError(
            f"--batch-size: {options.batch_size} exceeds the {len(task.train)} "
            "training examples."
        )
    train, dev = (
        encode(
            rows,
            task.labels,
            checkpoint.tokenizer,
            checkpoint.config,
            length=options.length,
        )
        for rows in (task.train, task.dev)
    )
    problem = Problem(
        checkpoint.config,
        checkpoint.encoder,
        len(task.labels),
        train,
        dev,
        options.steps,
        options.batch_size,
    )
    return problem, checkpoint, task


class Comparison:
    """Carries out runs, compiling each recipe once and showing progress."""

    def __init__(self, problem: Problem, store: Store, recipes: list[str]):
        self._problem, self._store = problem, store
        self._evaluate = Evaluator(problem)
        self._masks = Masks(problem, recipes)
        self._programs = {name: Program(problem, RECIPES[name]) for name in recipes}

    def carry_out(self, runs: list[Run], title: str) -> list[dict[str, Any]]:
        """The records of these runs; finished ones are read, not repeated."""
        console = rich.console.Console(stderr=True)
        with rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.TimeElapsedColumn(),
            console=console,
        ) as progress:
            whole = progress.add_task(title, total=len(runs) * self._problem.steps)
            records = []
            for number, run in enumerate(runs, start=1):
                label = f"{title} {number}/{len(runs)}: {run.recipe}"
                progress.update(whole, description=label)
                advance = lambda: progress.advance(whole)  # noqa: E731
                records.append(self._store.get(run, self._trainer(advance)))
                progress.update(whole, completed=number * self._problem.steps)
        return records

    def _trainer(self, advance: Callable[[], None]) -> Callable[[Run], dict]:
        def train(run: Run) -> dict[str, Any]:
            result = self._programs[run.recipe].run(
                learning_rate=run.learning_rate,
                seed=run.seed,
                mask=self._masks.get(run.recipe, run.seed),
                evaluate=self._evaluate,
                evaluations=run.evaluations,
                advance=advance,
            )
            del result["params"]
            return result

        return train


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Everything from input to summary."""
    problem, checkpoint, task = prepare(options)
    settings = common_settings(
        checkpoint=checkpoint.digest,
        task=task.digest,
        steps=options.steps,
        batch_size=options.batch_size,
        length=options.length,
    )
    store = Store(options.out / "runs", settings)
    comparison = Comparison(problem, store, options.recipes)
    grid = []
    rates = {
        n: options.learning_rate or RECIPES[n].learning_rate for n in options.recipes
    }
    if options.full:
        grid = comparison.carry_out(grid_runs(options.recipes), "learning rates")
        rates = best_rates(grid)
    runs = seed_runs(rates, options.seeds, options.evaluations)
    records = comparison.carry_out(runs, "comparison")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "environment": environment(),
        "command": {
            k: str(v) if isinstance(v, pathlib.Path) else v
            for k, v in vars(options).items()
        },
        "settings": settings,
        "task": {
            "name": task.name,
            "classes": len(task.labels),
            "train": len(task.train),
            "dev": len(task.dev),
        },
        "grid_seed": GRID_SEED if options.full else None,
        "grid": [
            {k: r[k] for k in ("recipe", "learning_rate", "accuracy")} for r in grid
        ],
        "summary": report.summarise(records),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    try:
        options = parse(argv)
        results = compare(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    task = results["task"]
    title = f"{task['name']}: {task['train']} train, {task['dev']} dev examples"
    png = report.plot(results["summary"], title)
    write_atomically(options.out / "comparison.png", png)
    text = json.dumps(results, indent=1, allow_nan=False)
    write_atomically(options.out / "results.json", text.encode())
    rich.console.Console().print(report.table(results["summary"], title))
    print(f"Written to {options.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
