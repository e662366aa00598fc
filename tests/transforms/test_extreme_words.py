"""What the first and the last random words do, wherever words become anything else."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import ndtri

import optaxtricks as ot

# Of the leaf "w" under key 0: a word, and the step and entry where it is drawn.
PLACES = {
    0: (48008, 51584),
    1: (6206, 42782),
    2**31 - 1: (94923, 24502),
    2**31: (94835, 23011),
    # The upper 24 bits and a half are 2**24 in float32.
    2**32 - 98: (79, 16840),
    2**32 - 2: (134653, 63924),
    2**32 - 1: (32155, 61959),
}
GRADS = {"w": jnp.ones(2**16)}
NEAR_ONE = 1 - 2.0**-24
each_word = pytest.mark.parametrize("word", PLACES, ids=hex)
each_rate = pytest.mark.parametrize("rate", [2.0**-32, 0.5, NEAR_ONE, 1.0])


def drawn(tx: Any, word: int) -> tuple[np.ndarray, float]:
    """The update of ones at the step of that word, and of its entry."""
    step, entry = PLACES[word]
    state = tx.init(GRADS)._replace(step=jnp.int32(step))
    update = np.asarray(tx.update(GRADS, state)[0]["w"])
    return update, float(update[entry])


@each_word
@pytest.mark.parametrize("dropout", [ot.gradient_dropout, ot.update_dropout])
def test_gaussian_noise_is_finite(dropout: Any, word: int) -> None:
    update, own = drawn(dropout(0.5, key=0, distribution="gaussian"), word)
    assert abs(update - 1).max() < 6.34  # deviations, at this rate; and so no NaN
    want = ndtri((word % 2**31 + 0.5) / 2**32) * (-1 if word < 2**31 else 1)
    assert own - 1 == pytest.approx(want, rel=1e-6, abs=1e-7)


@each_word
def test_gaussian_noise_at_a_rate_of_zero_is_infinite_but_no_nan(word: int) -> None:
    """As no normal number is 0."""
    nothing = lambda step: 0.0
    update, own = drawn(
        ot.gradient_dropout(nothing, key=0, distribution="gaussian"), word
    )
    assert np.isinf(update).all() and (own > 0) == (word < 2**31)


@each_rate
@each_word
def test_a_word_is_kept_below_the_rate_of_all_words(word: int, rate: float) -> None:
    kept = word < rate * 2**32
    tx = ot.gradient_dropout(lambda step: rate, key=0)
    update, own = drawn(tx, word)
    assert own == (np.float32(1 / rate) if kept else 0)
    step, entry = PLACES[word]
    mask = ot.dropout_mask(GRADS, rate, key=0, step=step)["w"]
    assert bool(mask[entry]) is kept
    np.testing.assert_array_equal(mask, update != 0)


@each_rate
@each_word
def test_magma_keeps_the_same_words(
    word: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["optaxtricks.transforms.magma"]
    always = lambda like, seed, granularity: jnp.uint32(word)
    monkeypatch.setattr(module, "entry_words", always)
    tx = ot.magma(optax.sgd(1.0), key=0, keep_rate=rate)
    with jax.disable_jit():  # nor may a trace with this word be kept
        update = tx.update(jnp.ones(2), tx.init(jnp.ones(2)))[0]
    assert bool(np.asarray(update).all()) is (word < rate * 2**32)
