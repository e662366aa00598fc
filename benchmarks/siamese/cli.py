"""The command line, checked as far as it can be without reading the images."""

import argparse
import dataclasses
import pathlib

from ..finetune.cli import Parser, check_writable, count
from ..finetune.errors import InputError
from .training import SIZES
from .variants import SWEEPS

SEEDS = {"tiny": 2, "full": 8}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options with every default filled in; `sizes` holds the network's."""
    options = _parser().parse_args(argv)
    sizes = SIZES[options.size]
    if unknown := [name for name in options.sweeps if name not in SWEEPS]:
        raise InputError(f"unknown sweep {unknown[0]!r}; there are {list(SWEEPS)}.")
    options.sweeps = list(dict.fromkeys(options.sweeps))
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
        prog="python -m benchmarks.siamese",
        description="Shows what keeps SimSiam and BYOL from collapse.",
    )
    add = parser.add_argument
    add("--size", choices=tuple(SIZES), default="full")
    add("--sweeps", nargs="+", default=list(SWEEPS), metavar="NAME")
    add("--seeds", type=count, help="runs of each variant (8)")
    add("--steps", type=count, help="training steps (400), a multiple of 20")
    add("--out", type=pathlib.Path, metavar="DIR", help="folder for the results")
    return parser
