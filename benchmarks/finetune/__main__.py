"""The command `python -m benchmarks.finetune`."""

import json
import sys

import rich.console

from . import report
from .cli import parse
from .comparison import compare
from .errors import InputError
from .experiment import write_atomically
from .results import merged


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    try:
        options = parse(argv)
        results, notes = merged(options.out / "results.json", compare(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept for the next call", file=sys.stderr)
        return 130
    text = json.dumps(results, indent=1, allow_nan=False)
    png = report.plot(results)
    write_atomically(options.out / "comparison.png", png)
    write_atomically(options.out / "results.json", text.encode())
    console = rich.console.Console()
    console.print(report.table(results))
    for line in [*report.verdicts(results), *notes]:
        console.print(line)
    console.print(f"Results: {options.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
