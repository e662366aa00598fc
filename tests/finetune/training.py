"""Short trainings of the tiny BERT, and what they moved."""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks.finetune.checkpoint import open_checkpoint
from benchmarks.finetune.fisher import Fisher
from benchmarks.finetune.problem import Problem
from benchmarks.finetune.recipes import RECIPES
from benchmarks.finetune.task import encode, open_task
from benchmarks.finetune.train import Program

from .conftest import DATA, write_task

SEED = 3


@functools.cache
def tiny_problem():
    """The tiny task on the tiny BERT, three steps long."""
    opened = open_checkpoint(DATA / "tiny_bert")
    with tempfile.TemporaryDirectory() as folder:
        rows = open_task(write_task(Path(folder) / "task"))
    prepared = [
        encode(part, rows.labels, opened.tokenizer, opened.config, length=8)
        for part in (rows.train, rows.dev)
    ]
    return Problem(opened.config, opened.encoder, 2, *prepared, steps=3, batch_size=8)


@functools.cache
def fisher():
    """One pass for the Fisher scores serves all tests."""
    return Fisher(tiny_problem(), list(RECIPES))


def train(problem, name, learning_rate=1e-2):
    """Parameters before and after, the mask, and the record of a short run."""
    program, derived = Program(problem, RECIPES[name]), fisher().get(name, SEED)
    after, record = program.run(
        learning_rate=learning_rate,
        seed=SEED,
        derived=derived,
        evaluate=lambda params: 0.5,
        evaluations=1,
    )
    return program.initial(SEED, derived.start), after, derived.mask, record


def moved(before, after):
    """A tree of Boolean arrays: which entries changed by as much as a bit."""
    return jax.tree.map(lambda x, y: np.asarray(x) != np.asarray(y), before, after)


def count(tree):
    """Number of entries that are set."""
    return sum(int(leaf.sum()) for leaf in jax.tree.leaves(tree))


def size(tree):
    """Number of entries."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
