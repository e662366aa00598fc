"""The command `python -m benchmarks.embedding_anomaly`."""

import sys

from ..comparison_command import ComparisonCommand
from . import report
from .comparison import compare
from .training import SIZES
from .variants import VARIANTS

main = ComparisonCommand(
    name="embedding_anomaly",
    description="Shows how sign methods drive rare words' embeddings apart.",
    sizes=SIZES,
    seeds={"tiny": 2, "full": 3},
    kind="variant",
    choices=VARIANTS,
    compare=compare,
    table=report.table,
    plot=report.plot,
).run


if __name__ == "__main__":
    sys.exit(main())
