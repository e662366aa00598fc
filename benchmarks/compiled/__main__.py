"""Tables of compiled optimizer steps: bytes, temporaries, launches, collectives.

python -m benchmarks.compiled --target v5e:2x2              # or h100, v5p:2x2x1, ...
python -m benchmarks.compiled --target h100 --recipes tiger "magma(lion)" --kernels
python -m benchmarks.compiled --target v5e:16x16 --size tree --out DIR
python -m benchmarks.compiled --target h100 --compare OLD.json
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.progress

from . import report
from .recipes import BASES, RECIPES, SIZES, gradients, parameters
from .steps import Program, compiled_step
from .targets import Target


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compiles each recipe and its base; a row for each recipe."""
    mesh = Target(options.target).mesh()
    done: dict[tuple[str, str], Program] = {}
    console = rich.console.Console(stderr=True)

    def program(name: str, size: str) -> Program:
        if (name, size) not in done:
            recipe = RECIPES[name]
            params = parameters(mesh, size, options.dtype)
            done[name, size] = compiled_step(
                recipe.make(params),
                params,
                grads=gradients(recipe, params),
                kernels=options.kernels,
            )
        return done[name, size]

    rows = []
    compiled_step(BASES["optax.sgd"](None), parameters(mesh, "tiny", "float32"))  # warm
    with rich.progress.Progress(console=console) as progress:
        bar = progress.add_task("compiling", total=len(options.recipes))
        for name in options.recipes:
            progress.update(bar, description=name)
            recipe = RECIPES[name]
            size = recipe.size or options.size
            one, base = program(name, size), program(recipe.base, size)
            rows.append(report.row(name, recipe.base, size, one, base))
            if options.lines:
                console.print(name, *one.traffic.heaviest(options.lines), sep="\n")
            progress.advance(bar)
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--target", required=True, help="h100, v5e:2x2, v5p:8x8x16 ...")
    result.add_argument(
        "--recipes",
        nargs="+",
        choices=tuple(RECIPES),
        metavar="NAME",
        default=tuple(RECIPES),
        help="of: " + "; ".join(RECIPES).replace("%", "%%"),
    )
    result.add_argument("--size", choices=tuple(SIZES), default="matrix")
    result.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    result.add_argument("--kernels", action="store_true", help="registers and spills")
    result.add_argument("--lines", type=int, default=0, help="heaviest lines to show")
    result.add_argument("--out", type=pathlib.Path, help="folder for JSON and chart")
    result.add_argument("--compare", type=pathlib.Path, help="an older JSON")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles, prints and writes; returns 1 if a figure became worse."""
    options = parser().parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # no other device is looked for
    options.dtype = jnp.dtype(options.dtype)
    old = json.loads(options.compare.read_text()) if options.compare else None
    try:
        rows = measure(options)
    except (ModuleNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    name = f"compiled_{options.target.replace(':', '_')}_{options.size}_{options.dtype}"
    record = report.record(name, options, rows)
    console = rich.console.Console()
    if not console.is_terminal:
        console = rich.console.Console(width=200)
    console.print(report.table(record, old))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=2) + "\n"
        (options.out / f"{name}.json").write_text(text)
        report.chart(record, options.out / f"{name}.png")
    worse = report.worse(record, old) if old else []
    for line in worse:
        console.print(f"worse: {line}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
