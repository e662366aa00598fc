"""The command line, checked as far as it can be without reading a file."""

import argparse
import math
import os
import pathlib

from .errors import InputError
from .recipes import RECIPES
from .task import BUILT_IN, DEFAULT_TASK

# The quick comparison has eight minutes on two cores, installation included.
QUICK = {
    "recipes": ["full", "head", "child_tuning_d", "child_tuning_f", "lion"],
    "seeds": 1,
    "evaluations": 2,
}
FULL = {"recipes": list(RECIPES), "seeds": 5, "evaluations": 3}
STEPS = 150
LENGTH = 32
RESULTS = pathlib.Path("benchmarks/results")


class Parser(argparse.ArgumentParser):
    """Reports bad usage like all other bad input: one line."""

    def error(self, message: str):
        raise InputError(message)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options with every default filled in."""
    options = _parser().parse_args(argv)
    size = FULL if options.full else QUICK
    options.recipes = options.recipes or size["recipes"]
    if unknown := [name for name in options.recipes if name not in RECIPES]:
        raise InputError(f"unknown recipe {unknown[0]!r}; there are {list(RECIPES)}.")
    if options.full and options.learning_rate is not None:
        raise InputError("--learning-rate and --full exclude each other.")
    options.recipes = list(dict.fromkeys(options.recipes))
    options.steps = options.steps or STEPS
    options.seeds = options.seeds or size["seeds"]
    options.evaluations = min(size["evaluations"], options.steps)
    task = BUILT_IN.get(options.task)
    options.length = options.length or (task.length if task else LENGTH)
    options.out = options.out or RESULTS / _folder(options)
    check_writable(options.out)
    return options


def _folder(options: argparse.Namespace) -> str:
    """Every task has its own table, and so has the quick comparison."""
    task = pathlib.Path(options.task).name
    parts = ["finetune", *([] if task == DEFAULT_TASK else [task])]
    return "-".join([*parts, *([] if options.full else ["quick"])])


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.finetune",
        description="Fine-tunes a pretrained encoder, recipe by recipe.",
    )
    add = parser.add_argument
    add("--checkpoint", type=pathlib.Path, metavar="DIR", help="BERT or RoBERTa folder")
    add(
        "--task",
        default=DEFAULT_TASK,
        metavar="TASK",
        help=f"{', '.join(BUILT_IN)}, or a folder with train.jsonl and dev.jsonl",
    )
    add("--recipes", nargs="+", metavar="NAME", help=f"of {', '.join(RECIPES)}")
    add("--full", action="store_true", help="best rates, then several seeds; resumable")
    add("--steps", type=count, help=f"training steps ({STEPS})")
    add("--seeds", type=count, help="runs of each recipe (1; with --full 5)")
    add("--learning-rate", type=rate, help="one peak rate for all recipes")
    add("--batch-size", type=count, default=16)
    add("--length", type=count, help=f"tokens that are read ({LENGTH}, or the task's)")
    add("--out", type=pathlib.Path, metavar="DIR", help="folder for the results")
    return parser


def count(text: str) -> int:
    """A positive integer, as an option's type."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}.")
    return int(text)


def rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}.")
    return value


def check_writable(out: pathlib.Path) -> None:
    """Rejects a folder that results could not be written to."""
    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"--out: {out} cannot be written.")
