"""Which recipe fits where: plans of language models for slices of TPU v5e and H100s.

python -m benchmarks.pod.plans                  # all cells; what is compiled is kept
python -m benchmarks.pod.plans --rows ladder AdamW

Each cell is the command `python -m benchmarks.pod --plan ...`, one sequence of 2048
tokens for each shard of the data.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from ..finetune.experiment import write_atomically
from . import cli
from .plan import plan
from .plan_report import record

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


def mesh_of(target: str) -> str:
    """Both axes of a slice: the longer one for the data; all cards of a host for it."""
    kind, _, shape = target.partition(":")
    if kind == "h100":
        return f"data={shape}"
    short, long = sorted(int(size) for size in shape.split("x"))
    return f"data={long},model={short}"


def planned(row: str, model: str, target: str) -> dict[str, Any]:
    """The record of a cell."""
    flags = ["--plan", target, "--mesh", mesh_of(target), "--model", model]
    flags += ["--plan-cache", str(CACHE), "--recipe", *ROWS[row]]
    return record(plan(cli.parse(flags)))


def cells(rows: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All plans of some rows, then of each the smallest slice that it fits on."""
    for model, targets in CELLS.items():
        for target in targets:
            for row in rows:
                yield _cell("fits", row, model, target)
    for model in CELLS:
        for row in rows:
            for shape in SLICES:
                found = _cell("smallest", row, model, f"v5e:{shape}")
                if found["fits"] or shape == SLICES[-1]:
                    yield found
                    break


def _cell(kind: str, row: str, model: str, target: str) -> dict[str, Any]:
    print(f"{row}, {model}, {target} ...", file=sys.stderr, flush=True)
    found = planned(row, model, target)
    total = found["total"]
    print(f"  {total / 1e9:.2f} GB" if total else "  refused", file=sys.stderr)
    return {"cell": kind, "row": row, "model": model, "target": target, **found}


def main(argv: Sequence[str] | None = None) -> int:
    """Plans all cells and writes them down as they come."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--out", type=pathlib.Path, default=RESULT)
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # no other device is looked for
    done = []
    for cell in cells(options.rows):
        done.append(cell)
        write_atomically(options.out, (json.dumps(done, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
