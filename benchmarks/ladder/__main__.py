"""The command `python -m benchmarks.ladder`."""

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

from .. import harness
from ..finetune.errors import InputError
from . import __doc__ as description
from . import starts, steps

RECIPES = ("full", "lora", "adapters", "bitfit", "ladder", "ladder_cached")
# (encoder, batch size, length); `small` has the sizes of the main job's MiniLM-L6.
WORK = {
    "tiny": {
        "2 layers x 32": (
            {"layers": 2, "width": 32, "vocabulary": 128, "heads": 2},
            (4, 8),
        ),
    },
    "full": {
        "8 layers x 512": (
            {"layers": 8, "width": 512, "vocabulary": 30522, "heads": 8},
            (16, 128),
        ),
        "6 layers x 384": (
            {"layers": 6, "width": 384, "vocabulary": 30522, "heads": 12},
            (16, 32),
        ),
    },
}
WINDOWS = {"tiny": 3, "full": 7}


def cost_rows(size: str) -> list[dict[str, Any]]:
    """One row for each encoder and recipe; ratios are to full fine-tuning."""
    rows = []
    for name, (encoder, (batch_size, length)) in WORK[size].items():
        problem = steps.random_problem(
            steps.encoder_config(**encoder), batch_size=batch_size, length=length
        )
        ready = {recipe: steps.RecipeStep(problem, recipe) for recipe in RECIPES}
        seconds = harness.alternate(ready, windows=WINDOWS[size])
        whole = ready["full"].costs
        for recipe, step in ready.items():
            row: dict[str, Any] = {"encoder": name, "batch": f"{batch_size} x {length}"}
            row |= {"recipe": recipe, "trained": step.trained}
            for cost, value in step.costs.items():
                row |= {cost: value, f"{cost.split()[0]} / full": value / whole[cost]}
            row["ms"] = 1e3 * seconds[recipe]
            row["ms / full"] = seconds[recipe] / seconds["full"]
            rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both parts; returns the exit code."""
    parser = harness.parser(description)
    parser.add_argument("--json", action="store_true", help="print JSON, no tables")
    options = parser.parse_args(argv)
    try:
        start = starts.rows(options.size)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    results = {"ladder": cost_rows(options.size), "ladder_start": start}
    hidden = contextlib.redirect_stdout(io.StringIO())
    with hidden if options.json else contextlib.nullcontext():
        for name, rows in results.items():
            harness.publish(name, rows, options)
    if options.json:
        where = {"size": options.size, "environment": harness.environment()}
        print(json.dumps({**where, **results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
