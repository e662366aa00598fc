"""From checked options to the results of every recipe."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import rich.console
import rich.progress

from . import report
from .checkpoint import Checkpoint, open_checkpoint
from .encoder import PAIR_FEATURES
from .errors import InputError
from .experiment import (
    FINGERPRINTS,
    GRID_SEED,
    Run,
    Store,
    best_rates,
    common_settings,
    search_runs,
    seed_runs,
)
from .fisher import Fisher
from .problem import Problem
from .recipes import RECIPES
from .task import Task, encode, open_task
from .train import Evaluator, Program


def prepare(options: argparse.Namespace) -> tuple[Problem, Checkpoint, Task]:
    """Reads and checks everything before any work is done."""
    checkpoint = open_checkpoint(options.checkpoint)
    config = checkpoint.config
    if options.length > config.max_length:
        raise InputError(
            f"--length: {options.length} exceeds the checkpoint's "
            f"{config.max_length} positions."
        )
    task = open_task(options.task)
    if options.batch_size > len(task.train):
        raise InputError(
            f"--batch-size: {options.batch_size} exceeds the {len(task.train)} "
            "training examples."
        )
    train, dev = (
        encode(rows, task.labels, checkpoint.tokenizer, config, length=options.length)
        for rows in (task.train, task.dev)
    )
    problem = Problem(
        config=config,
        encoder=checkpoint.encoder,
        num_classes=len(task.labels),
        train=train,
        dev=dev,
        steps=options.steps,
        batch_size=options.batch_size,
    )
    for name in options.recipes:
        # Rejects a checkpoint whose widths a recipe's model cannot have.
        _ = dataclasses.replace(problem, make=RECIPES[name].model).model
    return problem, checkpoint, task


class Comparison:
    """Carries out runs, compiling each recipe once and showing progress."""

    def __init__(self, problem: Problem, store: Store, recipes: list[str]):
        self._problem, self._store = problem, store
        models = {RECIPES[name].model for name in recipes}
        self._evaluators = {
            make: Evaluator(dataclasses.replace(problem, make=make)) for make in models
        }
        self._fisher = Fisher(problem, recipes)
        self._programs = {name: Program(problem, RECIPES[name]) for name in recipes}

    def carry_out(self, runs: list[Run], title: str) -> list[dict[str, Any]]:
        """The records of these runs; finished ones are read, not repeated."""
        steps = self._problem.steps
        with rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(),
            rich.progress.TimeElapsedColumn(),
            console=rich.console.Console(stderr=True),
        ) as progress:
            bar = progress.add_task(title, total=len(runs) * steps)
            records = []
            for number, run in enumerate(runs, start=1):
                label = f"{title} {number}/{len(runs)}: {run.recipe}"
                progress.update(bar, description=label)
                train = self._trainer(lambda: progress.advance(bar))
                records.append(self._store.get(run, train))
                progress.update(bar, completed=number * steps)
        return records

    def _trainer(self, advance: Callable[[], None]) -> Callable[[Run], dict]:
        def train(run: Run) -> dict[str, Any]:
            _, record = self._programs[run.recipe].run(
                learning_rate=run.learning_rate,
                seed=run.seed,
                derived=self._fisher.get(run.recipe, run.seed),
                evaluate=self._evaluators[RECIPES[run.recipe].model],
                evaluations=run.evaluations,
                advance=advance,
            )
            return record

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
    if problem.paired:
        settings["pair_features"] = PAIR_FEATURES
    store = Store(options.out / "runs", settings)
    comparison = Comparison(problem, store, options.recipes)
    chosen = {name: options.learning_rate for name in options.recipes}
    rates = {name: rate or RECIPES[name].learning_rate for name, rate in chosen.items()}
    grid = []
    if options.full:
        while runs := search_runs(options.recipes, grid):
            grid += comparison.carry_out(runs, "learning rates")
        rates = best_rates(grid)
    runs = seed_runs(rates, options.seeds, options.evaluations)
    records = comparison.carry_out(runs, "comparison")
    entries = report.summarise(records)
    where = settings.pop("environment")
    for name, entry in entries.items():
        entry |= {"environment": where, "fingerprint": FINGERPRINTS[name]}
    return {
        "settings": {
            **settings,
            "full": options.full,
            "evaluations": options.evaluations,
        },
        "checkpoint": options.checkpoint.name if options.checkpoint else "default",
        "task": {
            "name": task.name,
            "classes": len(task.labels),
            "train": len(task.train),
            "dev": len(task.dev),
        },
        "learning_rate_grid": _grid(grid),
        "recipes": entries,
    }


def _grid(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not records:
        return None
    accuracy: dict[str, dict[str, float]] = {}
    for record in records:
        rate = f"{record['learning_rate']:g}"
        accuracy.setdefault(record["recipe"], {})[rate] = record["accuracy"]
    return {"seed": GRID_SEED, "dev_accuracy": accuracy}
