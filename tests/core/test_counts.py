"""Counts that neither overflow nor round: against Python's integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optaxtricks._core.counts import exact_sum, fraction, total_count


def whole(split: tuple[jax.Array, jax.Array], low_bits: int) -> int:
    high, low = map(int, split)
    assert low < 2**low_bits
    return high * 2**low_bits + low


@pytest.mark.parametrize("low_bits", [8, 16])
@pytest.mark.parametrize(
    ("size", "top"),
    [(1, 2**32 - 1), (3, 2**32 - 1), (2**16 + 1, 2**16 - 1), (2**17, 2**22)],
)
def test_sums_past_a_word_are_exact(size: int, top: int, low_bits: int) -> None:
    full = np.full(size, top, np.uint32)
    mixed = np.random.default_rng(0).integers(0, top, size, np.uint32, endpoint=True)
    for counts in full, mixed:
        got = jax.jit(lambda c: exact_sum(c, low_bits=low_bits))(counts)
        assert whole(got, low_bits) == counts.sum(dtype=np.uint64)


def test_many_small_counts_pass_a_word_together() -> None:
    """As the zeros in the rows of a table of more than 2**32 entries do."""
    rows = 2**24 + 2**18
    counts = jnp.full((rows, 1), 255, jnp.uint32)
    assert whole(total_count(counts, at_most=rows * 256), 8) == 255 * rows


@pytest.mark.parametrize("of", [1, 255, 2**24 - 1, 2**24 + 1, 2**25, 2**32, 10**12 + 7])
def test_a_fraction_is_zero_or_one_of_none_or_all_alone(of: int) -> None:
    split = lambda n: (np.uint32(n >> 8), np.uint32(n & 255))
    assert float(fraction(split(of), of)) == 1
    assert float(fraction(split(0), of)) == 0
    assert float(fraction(split(of - 1), of)) < 1
    assert float(fraction(split(1), of)) == pytest.approx(1 / of)
    assert float(fraction(split(of // 3), of)) == pytest.approx(of // 3 / of)


def test_a_fraction_of_nothing_is_zero() -> None:
    assert float(fraction((np.uint32(0), np.uint32(0)), 0)) == 0
