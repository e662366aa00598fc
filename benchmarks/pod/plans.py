"""Which recipe fits where: plans of language models for slices of TPU v5e and H100s.

python -m benchmarks.pod.plans        # what is compiled is kept, for the next time

Each cell is the command `python -m benchmarks.pod --plan ...`, one sequence of 2048
tokens for each shard of the data; of the largest batches, with `--search`.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax

from ..finetune.errors import InputError
from ..finetune.experiment import write_atomically
from . import cli
from .plan import Plan, plan
from .plan_report import compiled_on, record
from .search import search

RESULT = pathlib.Path("benchmarks/results/plans.json")
CACHE = pathlib.Path("build/plans")
CELLS = {
    "8b": ("v5e:4x4", "v5e:16x16"),
    "70b": ("v5e:16x16", "h100:8"),
}
SLICES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# The name of each row, and what `benchmarks.pod` is asked for it.
ROWS = {
    "AdamW": ("adamw",),
    "Lion": ("lion",),
    "Tiger": ("tiger", "--set", "accumulate_steps=1"),
    "Tiger, window of 4": ("tiger",),
    "Lion in bfloat16": ("bfloat16_lion",),
    "Child-Tuning-D, Lion": ("child_tuning_d",),
    "compact entries, 0.5 %, AdamW": ("compact",),
    "lazy rows, Lion": ("lazy_lion",),
    "LoRA": ("lora",),
    "ladder": ("ladder",),
    "ladder on cached taps": ("cached",),
}
SEARCHED = ("AdamW", "LoRA", "ladder")


def mesh_of(target: str) -> str:
    """Both axes of a slice: the longer one for the data; all cards of a host for it."""
    kind, _, shape = target.partition(":")
    if kind == "h100":
        return f"data={shape}"
    short, long = sorted(int(size) for size in shape.split("x"))
    return f"data={long},model={short}"


def flags(row: str, model: str, target: str) -> argparse.Namespace:
    """What a cell asks of the command."""
    given = ["--plan", target, "--mesh", mesh_of(target), "--model", model]
    return cli.parse([*given, "--plan-cache", str(CACHE), "--recipe", *ROWS[row]])


def cells() -> Iterator[dict[str, Any]]:
    """All plans, by tables."""
    for model, targets in CELLS.items():
        for target in targets:
            for row in ROWS:
                yield _cell("fits", row, flags(row, model, target))
    for row in SEARCHED:
        for found in search(flags(row, "8b", "v5e:4x4"), plan):
            yield _kept("largest", row, found)
    for model in CELLS:
        for row in ROWS:
            for shape in SLICES:
                cell = _cell("smallest", row, flags(row, model, f"v5e:{shape}"))
                if cell["fits"]:
                    yield cell
                    break


def _cell(table: str, row: str, options: argparse.Namespace) -> dict[str, Any]:
    try:
        return _kept(table, row, plan(options))
    except InputError as error:
        print(f"{table}: {row}: {error}", file=sys.stderr)
        asked = {"model": options.model, "target": options.plan}
        return {"table": table, "row": row, "settings": asked} | {
            "fits": False,
            "refusal": str(error),
        }


def _kept(table: str, row: str, found: Plan) -> dict[str, Any]:
    jax.clear_caches()  # gigabytes, after some dozens of programs
    cell = {"table": table, "row": row, **record(found)}
    del cell["compiler memory"]  # of all cells so far
    at, total = found.settings, found.total
    size = "refused" if total is None else f"{total / 1e9:.2f} GB"
    print(f"{table}: {row}, {at['model']}, {at['target']}: {size}", file=sys.stderr)
    return cell


def main() -> int:
    """Plans all cells and writes them down as they come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=RESULT)
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # no other device is looked for
    done: dict[str, Any] = {"compiled on": compiled_on(), "cells": []}
    for cell in cells():
        done["cells"].append(cell)
        write_atomically(options.out, (json.dumps(done, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
