"""The command line, checked as far as it can be without reading the text."""

import argparse
import dataclasses
import pathlib

from ..finetune.cli import Parser, check_writable, count
from ..finetune.errors import InputError
from .training import SIZES
from .variants import VARIANTS

SEEDS = {"tiny": 2, "full": 3}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options with every default filled in; `sizes` holds the model's."""
    options = _parser().parse_args(argv)
    sizes = SIZES[options.size]
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        raise InputError(f"unknown variant {unknown[0]!r}; there are {list(VARIANTS)}.")
    options.variants = list(dict.fromkeys(options.variants))
    if options.steps is not None:
        if options.steps % sizes.every:
            raise InputError(
                f"--steps: must be a multiple of {sizes.every}, got {options.steps}."
            )
        sizes = dataclasses.replace(sizes, steps=options.steps)
    options.sizes = sizes
    options.seeds = options.seeds or SEEDS[options.size]
    if options.out:
        check_writable(options.out)
    return options


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.embedding_anomaly",
        description="Shows how sign methods drive rare words' embeddings apart.",
    )
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="full")
    add("--variants", nargs="+", default=list(VARIANTS), metavar="NAME")
    add("--seeds", type=count, help="runs of each variant (3)")
    add("--steps", type=count, help="training steps (600), a multiple of 20")
    add("--out", type=pathlib.Path, metavar="DIR", help="folder for the results")
    return parser
