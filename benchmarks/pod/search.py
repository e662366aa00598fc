"""The largest batch that fits on a machine, for each way to compute one."""

import argparse
import copy
from collections.abc import Callable, Iterator

from .parts import REMATS
from .plan import Plan, plan_mesh

MOST = 1024  # examples for each shard of the data


def search(
    options: argparse.Namespace, planned: Callable[[argparse.Namespace], Plan]
) -> Iterator[Plan]:
    """For each way to compute a batch, plans by powers of two until one does not fit.

    With accumulation a step computes microbatches one by one and adds up gradients in
    float32: any number of them takes the memory of two, which are planned.
    """
    shards = plan_mesh(options).shape["data"]
    for remat in REMATS:
        for microbatches in (1, 2):
            examples = 1
            while examples <= MOST:
                trial = copy.copy(options)
                trial.remat, trial.microbatches = remat, microbatches
                trial.batch_size = shards * microbatches * examples
                found = planned(trial)
                yield found
                if not found.fits:
                    break
                examples = _next(examples, found)


def _next(examples: int, found: Plan) -> int:
    """Twice as many; more where temporaries in proportion would still fit.

    They grow by less than in proportion, so that no size that does not fit is passed.
    """
    assert found.arguments is not None
    room = (found.chip.memory - found.arguments) / max(1, found.temporaries)
    grown = examples
    while 2 * grown <= room * examples:
        grown *= 2
    return max(2 * examples, min(grown, MOST))
