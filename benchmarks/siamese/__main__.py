"""The command `python -m benchmarks.siamese`."""

import sys

from ..comparison_command import ComparisonCommand
from . import report
from .comparison import compare
from .training import SIZES
from .variants import SWEEPS

main = ComparisonCommand(
    name="siamese",
    description="Shows what keeps SimSiam and BYOL from collapse.",
    sizes=SIZES,
    seeds={"tiny": 2, "full": 8},
    kind="sweep",
    choices=SWEEPS,
    compare=compare,
    table=report.table,
    plot=report.plot,
).run


if __name__ == "__main__":
    sys.exit(main())
