"""Whether side layers that are pruned from the encoder start better than fresh ones."""

import dataclasses
from typing import Any

from ..finetune.checkpoint import open_checkpoint
from ..finetune.fisher import Fisher
from ..finetune.problem import Problem
from ..finetune.recipes import RECIPES
from ..finetune.report import mean_and_error
from ..finetune.task import encode, open_task
from ..finetune.train import Program
from .steps import encoder_config, random_problem

BATCH, LENGTH = 16, 32
SEEDS = {"tiny": 2, "full": 3}


def rows(size: str) -> list[dict[str, Any]]:
    """One row for each start; the loss is the mean over the first epoch."""
    problem = _tiny() if size == "tiny" else _main_job()
    program = Program(problem, RECIPES["ladder_cached"])
    fisher = Fisher(problem, ["ladder_pruned"])
    losses: dict[str, list[float]] = {"fresh": [], "pruned": []}
    for seed in range(SEEDS[size]):
        for start, recipe in (("fresh", "ladder"), ("pruned", "ladder_pruned")):
            _, record = program.run(
                learning_rate=RECIPES["ladder"].learning_rate,
                seed=seed,
                derived=fisher.get(recipe, seed),
                evaluate=lambda params: 0.0,
                evaluations=1,
            )
            losses[start].append(record["first_epoch_loss"])
    gaps = [p - f for p, f in zip(losses["pruned"], losses["fresh"], strict=True)]
    return [
        {"side layers": start, "steps": problem.steps, "seeds": len(values)}
        | _row("loss", values)
        | (_row("pruned - fresh", gaps) if start == "pruned" else {})
        for start, values in losses.items()
    ]


def _row(name: str, values: list[float]) -> dict[str, Any]:
    mean, error = mean_and_error(values)
    return {name: mean, f"{name}, standard error": error}


def _tiny() -> Problem:
    config = encoder_config(layers=2, width=32, vocabulary=128, heads=2)
    problem = random_problem(config, batch_size=8, length=8)
    return dataclasses.replace(problem, steps=2, batch_size=4)


def _main_job() -> Problem:
    """An epoch of the main job's default task on its default checkpoint."""
    checkpoint, task = open_checkpoint(None), open_task()
    train, dev = (
        encode(
            part, task.labels, checkpoint.tokenizer, checkpoint.config, length=LENGTH
        )
        for part in (task.train, task.dev)
    )
    return Problem(
        config=checkpoint.config,
        encoder=checkpoint.encoder,
        num_classes=len(task.labels),
        train=train,
        dev=dev,
        steps=len(train) // BATCH,
        batch_size=BATCH,
    )
