"""The command `python -m benchmarks.siamese`."""

import json
import sys

import rich.console

from ..finetune.errors import InputError
from ..finetune.experiment import write_atomically
from . import report
from .cli import parse
from .comparison import compare

NAME = "siamese"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    try:
        options = parse(argv)
        results = compare(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    where = results["settings"]["environment"]
    print("  ".join(f"{key} {value}" for key, value in where.items()))
    console = rich.console.Console()
    console.print(report.table(results))
    if options.out:
        text = json.dumps(results, indent=1, allow_nan=False)
        write_atomically(options.out / f"{NAME}.json", text.encode())
        write_atomically(options.out / f"{NAME}.png", report.plot(results))
        console.print(f"Results: {options.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
