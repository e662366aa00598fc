"""What recipes derive from Fisher information: masks, and pruned side networks."""

import dataclasses
from typing import Any

import numpy as np

import optaxtricks as ot

from .problem import Problem
from .recipes import RECIPES

FISHER_EXAMPLES = 256
FISHER_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Derived:
    """A recipe's share for one seed; None where it has none.

    `mask` is a tree of Boolean arrays laid out like the parameters; `start` holds
    initial values of some of them.
    """

    mask: Any = None
    start: Any = None


class Fisher:
    """What recipes derive, by seed; the scores are computed once for all of them."""

    def __init__(self, problem: Problem, recipes: list[str]):
        self._problem = problem
        self._recipes = {
            name: recipe
            for name in recipes
            if (recipe := RECIPES[name]).mask or recipe.start
        }
        self._derived: dict[int, dict[str, Derived]] = {}

    def get(self, recipe: str, seed: int) -> Derived:
        """The recipe's mask and start for this seed's head."""
        if recipe not in self._recipes:
            return Derived()
        if seed not in self._derived:
            scores = self._scores(seed)
            self._derived[seed] = {
                name: Derived(
                    mask=recipe.mask and recipe.mask(scores),
                    start=recipe.start
                    and recipe.start(
                        self._problem.config, self._problem.encoder, scores
                    ),
                )
                for name, recipe in self._recipes.items()
            }
        return self._derived[seed][recipe]

    def _scores(self, seed: int) -> Any:
        train = self._problem.train
        count = min(FISHER_EXAMPLES, len(train))
        rows = np.random.default_rng([seed, 2]).permutation(len(train))[:count]
        batches = [
            train[rows[start : start + FISHER_BATCH]]
            for start in range(0, count, FISHER_BATCH)
        ]
        params = self._problem.initial(seed)
        return ot.fisher_information(self._problem.log_likelihood, params, batches)
