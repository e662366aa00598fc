"""The command line, checked as far as it can be without a device."""

import argparse
import pathlib
from typing import Any

from ..finetune.cli import Parser, check_writable, count, rate
from ..finetune.errors import InputError
from . import hosts
from .mesh import parse_mesh
from .parts import REMATS
from .parts import SIZES as DECODERS
from .recipes import RECIPES
from .work import SIZES

LENGTHS = {"tiny": 64} | dict.fromkeys(("1b", "8b", "70b"), 2048)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options with every default filled in."""
    options = _parser().parse_args(argv)
    hosts.check(options)
    options.mesh = None if options.mesh is None else parse_mesh(options.mesh)
    recipe = RECIPES[options.recipe]
    options.learning_rate = options.learning_rate or recipe.learning_rate
    options.set = {**recipe.options, **_changes(options)}
    options.length = options.length or LENGTHS.get(options.model, 32)
    if options.model == "encoder" and None in (options.pretrained, options.task):
        raise InputError("--model: an encoder needs --pretrained and --task.")
    if options.keep < 2:
        raise InputError(f"--keep: must be at least 2, got {options.keep}.")
    if options.plan is not None:
        return options
    if options.out is None:
        raise InputError("--out: a run needs a folder; a --plan does not.")
    if extra := [flag for flag in ("json", "search") if getattr(options, flag)]:
        raise InputError(f"--{extra[0]}: goes with --plan.")
    options.batch_size = options.batch_size or 32
    check_writable(options.out)
    return options


def settings(options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """What must be equal for a run to go on from a checkpoint."""
    same = ("model", "recipe", "learning_rate", "steps", "batch_size", "microbatches")
    return {
        **work,
        **{name: getattr(options, name) for name in (*same, "seed")},
        **options.set,
    }


def _changes(options: argparse.Namespace) -> dict[str, float]:
    known = RECIPES[options.recipe].options
    changes = {}
    for text in options.set:
        name, _, value = text.partition("=")
        if name not in known:
            raise InputError(
                f"--set: {options.recipe} has no option {name!r}; it has {list(known)}."
            )
        try:
            changes[name] = type(known[name])(value)
        except ValueError:
            raise InputError(
                f"--set: {name} must be a number, got {value!r}."
            ) from None
    return changes


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.pod",
        description="Trains on one process or on many, and goes on after a crash.",
    )
    add = parser.add_argument
    models = "synthetic", "encoder", *DECODERS
    add("--model", choices=models, default="synthetic", help="numbers: a decoder")
    add("--size", choices=tuple(SIZES), default="small", help="of a synthetic model")
    add("--pretrained", type=pathlib.Path, metavar="DIR", help="BERT or RoBERTa folder")
    add("--task", type=pathlib.Path, metavar="DIR", help="train.jsonl and dev.jsonl")
    add("--length", type=count, help="tokens of a text that are read")
    add("--recipe", choices=tuple(RECIPES), default="dropout_lion")
    add("--set", action="append", default=[], metavar="NAME=X", help="recipe's option")
    add("--learning-rate", type=rate, help="peak rate")
    add("--steps", type=count, default=100)
    add("--batch-size", type=count, help="examples of a step, on all devices")
    add("--microbatches", type=count, default=1, help="a batch's parts, one by one")
    add("--remat", choices=tuple(REMATS), default="layer", help="a decoder keeps less")
    add("--seed", type=int, default=0)
    add("--mesh", metavar="data=N,model=M", help="devices by axis")
    add("--out", type=pathlib.Path, help="a folder all hosts see")
    add("--plan", metavar="TARGET", help="compile for v5e:16x16, h100:8 ... and tell")
    add("--search", action="store_true", help="plan the largest batch that fits")
    add("--json", action="store_true", help="of a plan")
    add("--plan-cache", type=pathlib.Path, metavar="DIR", help="what was compiled")
    add("--checkpoint-every", type=count, default=50, metavar="STEPS")
    add("--keep", type=count, default=3, help="checkpoints kept")
    add("--log-every", type=count, default=10, metavar="STEPS")
    add("--compilation-cache", type=pathlib.Path, metavar="DIR")
    add("--distributed", action="store_true", help="TPU pod, Slurm, Open MPI, K8s")
    add("--coordinator", metavar="HOST:PORT", help="elsewhere: process 0's address")
    add("--processes", type=count)
    add("--process-id", type=_index)
    add("--timeout", type=count, default=300, help="seconds to wait for the others")
    return parser


def _index(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be 0 or more, got {text!r}.")
    return int(text)
