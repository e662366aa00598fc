"""The largest batch that fits on a machine, by powers of two, as it may be computed."""

import argparse
import copy
from collections.abc import Callable, Iterator

from .parts import REMATS, SIZES
from .plan import Plan, plan_mesh
from .recipes import RECIPES

MOST = 1024  # examples for each shard of the data


def search(
    options: argparse.Namespace, planned: Callable[[argparse.Namespace], Plan]
) -> Iterator[Plan]:
    """For each way to compute a batch, plans by powers of two until one does not fit.

    With accumulation a step computes microbatches one by one and adds up gradients in
    float32: any number of them takes the memory of two, which are planned.
    """
    shards = plan_mesh(options).shape["data"]
    cached = RECIPES[options.recipe].model == "cached"
    layered = options.model in SIZES and not cached
    for remat in REMATS if layered else [options.remat]:
        # Taps of all microbatches are there from the start: nothing is gained.
        for microbatches in (1,) if cached else (1, 2):
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
