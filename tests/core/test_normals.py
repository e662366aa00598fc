"""Normal numbers from words: extremes, symmetry, and quantiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from optaxtricks._core.normals import _ABOVE, _BELOW, normals

TOP = np.uint32(2**31)
EXTREMES = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
BOUND = 5e-7  # of all 2**32 words, the worst is off by 3.6e-7, eagerly by 4.3e-7
COMPILED = pytest.mark.parametrize("rule", [normals, jax.jit(normals)], ids=["", "jit"])


def quantiles(words: np.ndarray) -> np.ndarray:
    """The same in float64: the sign, and the middle of a cell of one tail."""
    tail = ((words & (TOP - 1)).astype(np.float64) + 0.5) * 2.0**-32
    return np.where(words < TOP, -1, 1) * ndtri(tail)


def many_words() -> np.ndarray:
    """Both ends and the middle of both tails, and words spread over all sizes."""
    rng = np.random.default_rng(0)
    ends = np.arange(2**12, dtype=np.uint32)
    sizes = 2 ** rng.uniform(0, 31, 2**18)
    low = np.concatenate([ends, TOP - 1 - ends, sizes, rng.integers(0, TOP, 2**20)])
    low = low.astype(np.uint32)
    return np.concatenate([low, low ^ TOP])


@COMPILED
def test_extreme_words(rule) -> None:
    got = np.asarray(rule(EXTREMES))
    assert got.dtype == np.float32 and np.isfinite(got).all() and got.all()
    np.testing.assert_allclose(got, quantiles(EXTREMES), rtol=BOUND)
    assert got[0] == pytest.approx(6.338, abs=5e-4) and got[0] == -got[3]
    assert got[2] == pytest.approx(2.918e-10, rel=1e-3) and got[2] == -got[5]


@COMPILED
def test_every_word_gives_its_quantile(rule) -> None:
    words = many_words()
    got = np.asarray(rule(words))
    np.testing.assert_allclose(got, quantiles(words), rtol=BOUND)


@COMPILED
def test_another_top_bit_gives_the_negative_to_the_bit(rule) -> None:
    words = many_words()
    np.testing.assert_array_equal(rule(words), -np.asarray(rule(words ^ TOP)))


def test_the_rational_function_is_within_its_fit() -> None:
    """In float64, where no rounding hides a wrong digit of a coefficient."""
    w = np.linspace(1e-6, 21.5, 100_000)
    y = np.exp(-w) / 4  # q (1 - q)
    x = np.sqrt(-np.expm1(-w))
    want = -ndtri(2 * y / (1 + x)) / x
    got = np.polyval(_ABOVE[::-1], w) / np.polyval(_BELOW[::-1], w)
    assert abs(got / want - 1).max() < 1.2e-8


def test_lowers_for_every_platform() -> None:
    traced = jax.jit(normals).trace(jax.ShapeDtypeStruct((4, 8), jnp.uint32))
    for platform in ("cpu", "cuda", "tpu"):
        assert traced.lower(lowering_platforms=(platform,)).as_text()
