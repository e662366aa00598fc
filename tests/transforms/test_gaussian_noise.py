"""Gaussian noise over 2**28 draws through the public door: moments and tails."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

import optaxtricks as ot

pytestmark = pytest.mark.slow

STEPS, SIDE, CELLS = 256, 2**10, 256
DRAWS = STEPS * SIDE**2
DEVIATIONS = (1, 2, 3, 4, 5, 5.5, 6)


@pytest.fixture(scope="module")
def tally() -> dict[str, Any]:
    """Sums over the noise of 2**28 entries, a step at a time."""
    tx = ot.gradient_dropout(0.5, key=7, distribution="gaussian")
    ones = jnp.ones((SIDE, SIDE))
    state, update = tx.init(ones), jax.jit(tx.update)
    powers, products = np.zeros(4), np.zeros(3)
    cells = np.zeros(CELLS, np.int64)
    beyond = np.zeros((2, len(DEVIATIONS)), np.int64)
    before = np.zeros((SIDE, SIDE))
    for _ in range(STEPS):
        updates, state = update(ones, state)
        single = np.asarray(updates) - np.float32(1)
        assert np.isfinite(single).all()
        z = single.astype(np.float64)
        square = z * z
        powers += [z.sum(), square.sum(), (square * z).sum(), (square**2).sum()]
        neighbours = (z[:, 1:], z[:, :-1]), (z[1:], z[:-1]), (z, before)
        products += [np.vdot(a, b) for a, b in neighbours]
        # In float64, where no tail below 8 deviations is rounded to 1.
        cell = (ndtr(z) * CELLS).astype(np.uint8)
        cells += np.bincount(cell.ravel(), minlength=CELLS)
        for side, sign in enumerate((1, -1)):
            far = sign * single
            for i, deviation in enumerate(DEVIATIONS):
                far = far[far > deviation]
                beyond[side, i] += far.size
        before = z
    return {"powers": powers, "products": products, "cells": cells, "beyond": beyond}


def test_moments(tally: dict[str, Any]) -> None:
    # The variance of z**k is E z**2k - (E z**k)**2.
    errors = np.sqrt(np.array([1, 2, 15, 96]) / DRAWS)
    assert (abs(tally["powers"] / DRAWS - [0, 1, 0, 3]) < 5 * errors).all()


def test_neighbours_along_each_axis_and_step_are_independent(
    tally: dict[str, Any],
) -> None:
    assert (abs(tally["products"]) < 5 * math.sqrt(DRAWS)).all()


def test_tails_on_both_sides(tally: dict[str, Any]) -> None:
    """As rare as five standard errors, by the binomial law itself, is too far off."""
    for counts in tally["beyond"]:
        for count, deviation in zip(counts, DEVIATIONS, strict=True):
            law = binom(DRAWS, ndtr(-deviation))
            assert min(law.cdf(count), law.sf(count - 1)) > ndtr(-5)


def test_cells_of_equal_probability(tally: dict[str, Any]) -> None:
    expected = DRAWS / CELLS
    chi2 = ((tally["cells"] - expected) ** 2).sum() / expected
    assert abs(chi2 - (CELLS - 1)) < 5 * math.sqrt(2 * (CELLS - 1))
