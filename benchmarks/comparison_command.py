"""The command of a benchmark that trains what it compares, and reports on it."""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import rich.console
import rich.table

from .finetune.cli import Parser, check_writable, count
from .finetune.errors import InputError
from .finetune.experiment import write_atomically

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonCommand:
    """The command `python -m benchmarks.NAME`.

    Attributes:
      name: of the benchmark, and of the files of its results.
      description: a line for `--help`.
      sizes: dataclasses with `steps` and `every`, which divides them; one is "full".
      seeds: runs of each variant, at each of the sizes.
      kind: what one of the `choices` is called.
      choices: names of what can be compared.
      compare: from options to what goes into the JSON file.
      table: the same for a terminal.
      plot: the same as a PNG.
    """

    name: str
    description: str
    sizes: Mapping[str, Any]
    seeds: Mapping[str, int]
    kind: str
    choices: Collection[str]
    compare: Callable[[argparse.Namespace], Results]
    table: Callable[[Results], rich.table.Table]
    plot: Callable[[Results], bytes]

    def run(self, argv: list[str] | None = None) -> int:
        """Runs the command; returns its exit code."""
        try:
            options = self._parse(argv)
            results = self.compare(options)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        where = results["settings"]["environment"]
        print("  ".join(f"{key} {value}" for key, value in where.items()))
        console = rich.console.Console()
        console.print(self.table(results))
        if options.out:
            text = json.dumps(results, indent=1, allow_nan=False)
            write_atomically(options.out / f"{self.name}.json", text.encode())
            write_atomically(options.out / f"{self.name}.png", self.plot(results))
            console.print(f"Results: {options.out}", soft_wrap=True)
        return 0

    def _parse(self, argv: list[str] | None) -> argparse.Namespace:
        """Options with every default filled in, checked before any data are read.

        `chosen` holds some of `choices`, each once, and `sizes` the chosen size.
        """
        options = self._parser().parse_args(argv)
        sizes, known = self.sizes[options.size], list(self.choices)
        if unknown := [name for name in options.chosen if name not in known]:
            raise InputError(f"unknown {self.kind} {unknown[0]!r}; there are {known}.")
        options.chosen = list(dict.fromkeys(options.chosen))
        if options.steps is not None:
            if options.steps % sizes.every:
                raise InputError(
                    f"--steps: must be a multiple of {sizes.every}, "
                    f"got {options.steps}."
                )
            sizes = dataclasses.replace(sizes, steps=options.steps)
        options.sizes = sizes
        options.seeds = options.seeds or self.seeds[options.size]
        if options.out:
            check_writable(options.out)
        return options

    def _parser(self) -> Parser:
        parser = Parser(
            prog=f"python -m benchmarks.{self.name}", description=self.description
        )
        full, runs = self.sizes["full"], self.seeds["full"]
        steps = f"training steps ({full.steps}), a multiple of {full.every}"
        names = {"nargs": "+", "default": list(self.choices), "metavar": "NAME"}
        add = parser.add_argument
        add("--size", choices=tuple(self.sizes), default="full")
        add(f"--{self.kind}s", dest="chosen", **names)
        add("--seeds", type=count, help=f"runs of each variant ({runs})")
        add("--steps", type=count, help=steps)
        add("--out", type=pathlib.Path, metavar="DIR", help="folder for the results")
        return parser
