"""The counter hash: against a plain-integer oracle, and statistically."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optaxtricks._core import counter_hash
from optaxtricks._core.counter_hash import (
    entry_words,
    index_axes,
    key_words,
    last_kept_word,
    leaf_words,
    step_words,
)

MASK = 2**32 - 1


def mix_oracle(x: int, second: int) -> int:
    """triple32 with a word added after the first round, in Python integers."""
    x = ((x ^ (x >> 17)) * 0xED5AD4BB) & MASK
    x = ((x ^ (x >> 11)) + second) & MASK
    x = (x * 0xAC4C1B51) & MASK
    x = ((x ^ (x >> 15)) * 0x31848BAB) & MASK
    return x ^ (x >> 14)


def words(shape, *, key=0, path="w", step=0, granularity="element"):
    seed = leaf_words(key, [path])[0] ^ step_words(step)
    like = jax.ShapeDtypeStruct(shape, jnp.float32)
    return np.asarray(entry_words(like, seed, granularity))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two streams of words, in standard errors."""
    x, y = (v.ravel().astype(np.float64) / 2**32 - 0.5 for v in (a, b))
    return float((x * y).mean() * 12 * math.sqrt(x.size))


def test_entries_agree_with_plain_integers():
    seed = leaf_words(7, ["w"])[0] ^ step_words(3)
    first, second = (int(word) for word in seed)
    want = [mix_oracle(i ^ first, second) for i in range(12)]
    assert words((3, 4), key=7, step=3).ravel().tolist() == want


def test_stored_words_never_change():
    """A changed hash would change every mask of every resumed run."""
    assert words((4,), key=0).tolist() == [148438888, 2220943408, 962600689, 2837977925]


def test_words_do_not_depend_on_how_the_axes_are_cut():
    flat = words((24,))
    for shape in [(4, 6), (2, 3, 4), (24, 1), (1, 24)]:
        np.testing.assert_array_equal(words(shape).ravel(), flat)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (5, 1, 2)])
def test_small_shapes(shape):
    assert words(shape).shape == shape


def test_rows_and_leaves_share_a_word():
    rows = words((5, 3, 2), granularity="row")
    assert rows.shape == (5, 3, 2)
    assert (rows == rows[:, :1, :1]).all() and np.unique(rows).size == 5
    assert words((5, 3), granularity="leaf").shape == ()


@pytest.mark.parametrize(
    "shape", [(2, 3, 4), (7,), (4, 4), (3, 8), (2, 2, 2, 2), (1, 8, 2)]
)
def test_two_index_words_are_distinct_past_one_word(shape):
    """With words of 8 values instead of 2**32, every entry keeps its own pair."""
    high, low = index_axes(shape, "element", word=8)
    count = lambda axes, at: np.ravel_multi_index(
        [at[i] for i in axes] or [0], [shape[i] for i in axes] or [1]
    )
    entries = list(itertools.product(*map(range, shape)))
    pairs = {(count(high, at), count(low, at)) for at in entries}
    assert len(pairs) == len(entries)
    assert max(max(pair) for pair in pairs) < 8


def test_leaves_past_two_to_the_32_lower_with_two_index_words():
    huge = jax.ShapeDtypeStruct((2**20, 2**14), jnp.float32)
    seed = jnp.zeros(2, jnp.uint32)
    assert index_axes(huge.shape, "element") == (range(1), range(1, 2))
    assert index_axes((2**18, 2**14), "element") == (range(0), range(2))
    text = jax.jit(lambda s: entry_words(huge, s, "element")).lower(seed).as_text()
    assert text.count("stablehlo.iota") == 2
    assert words((6, 2**3)).dtype == np.uint32


def test_one_axis_past_two_to_the_32_is_refused():
    with pytest.raises(ValueError, match=r"more than 2\*\*32 entries"):
        index_axes((2**32 + 1,), "element")
    with pytest.raises(ValueError, match="reshape it"):
        index_axes((2**20, 2**20, 2**13), "element")
    index_axes((2**33,), "leaf")


def test_high_words_give_unrelated_streams(monkeypatch):
    """A leaf cut into high and low words, as one past 2**32 entries is."""
    cut = lambda shape, granularity: (range(1), range(1, 2))
    monkeypatch.setattr(counter_hash, "index_axes", cut)
    rows = words((64, 2**14), key=1)
    assert np.unique(rows).size > 0.999 * rows.size
    for distance in (1, 2, 16, 32):
        assert abs(correlation(rows[distance:], rows[:-distance])) < 5
    for a, b in itertools.combinations(rows[:12], 2):
        assert abs(correlation(a, b)) < 5


def test_the_last_kept_word_does_not_overflow_near_one_or_zero():
    assert int(last_kept_word(1.0)) == 2**32 - 1
    assert int(last_kept_word(2.0**-32)) == 0
    assert int(last_kept_word(1 - 2**-24)) == 2**32 - 257
    assert int(last_kept_word(0.5)) == 2**31 - 1
    assert int(last_kept_word(1e-30)) == 0


def test_so_many_words_are_kept_as_a_whole_number_says():
    """The rate times 2**32, rounded down, but at least one."""
    rates = np.float32(10.0) ** np.linspace(-12, 0, 10_000, dtype=np.float32)
    kept = np.asarray(last_kept_word(rates)).astype(np.int64) + 1
    want = np.maximum(np.floor(rates.astype(np.float64) * 2**32), 1)
    np.testing.assert_array_equal(kept, want)
    exact = rates >= 2.0**-9
    np.testing.assert_array_equal(kept[exact] / 2**32, rates[exact].astype(float))


def test_every_bit_is_fair():
    n = 2**20
    bits = np.unpackbits(words((n,)).view(np.uint8)).reshape(n, 32)
    assert (abs(bits.mean(0) - 0.5) < 5 * 0.5 / math.sqrt(n)).all()


def test_bytes_and_pairs_of_bytes_are_uniform():
    stream = words((2**20,), key=3)
    for shift in (0, 8, 16, 24):
        top = (stream >> shift) & 255
        pairs = top[:-1:2].astype(np.int64) * 256 + top[1::2]
        for values, cells in ((top, 256), (pairs, 65536)):
            expected = values.size / cells
            chi2 = ((np.bincount(values, minlength=cells) - expected) ** 2).sum()
            score = (chi2 / expected - (cells - 1)) / math.sqrt(2 * (cells - 1))
            assert abs(score) < 5


def test_avalanche_of_one_index_bit():
    """Flipping one bit of the index flips every bit of the word half of the time."""
    stream = words((2**16,), key=5)
    index = np.arange(2**16)
    for bit in range(16):
        flipped = stream ^ stream[index ^ (1 << bit)]
        rates = np.unpackbits(flipped.view(np.uint8)).reshape(-1, 32).mean(0)
        # Every pair is counted twice, so 2**15 draws are independent.
        assert (abs(rates - 0.5) < 5 * 0.5 / math.sqrt(2**15)).all()


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 64, 255, 256, 1024, 65536])
def test_entries_are_independent(lag):
    stream = words((2**20,), key=11)
    assert abs(correlation(stream[:-lag], stream[lag:])) < 5


def test_steps_are_independent():
    streams = [words((2**14,), step=s) for s in (0, 1, 2, 3, 255, 256, 2**16, 2**30)]
    for a, b in itertools.combinations(streams, 2):
        assert abs(correlation(a, b)) < 5


def test_leaves_are_independent():
    paths = ["a", "b", "layer/0/w", "layer/1/w", "layer/10/w", ""]
    streams = [words((2**14,), path=path) for path in paths]
    for a, b in itertools.combinations(streams, 2):
        assert abs(correlation(a, b)) < 5


def test_keys_that_differ_in_one_bit_are_independent():
    base = words((2**14,), key=0)
    for bit in range(64):
        assert abs(correlation(base, words((2**14,), key=1 << bit))) < 5


def test_step_words_do_not_repeat():
    pairs = np.asarray(jax.vmap(step_words)(jnp.arange(2**16, dtype=jnp.int32)))
    assert len(np.unique(pairs, axis=0)) == 2**16
    for column in pairs.T:
        bits = np.unpackbits(np.ascontiguousarray(column).view(np.uint8))
        rates = bits.reshape(-1, 32).mean(0)
        assert (abs(rates - 0.5) < 5 * 0.5 / 2**8).all()


def test_all_kinds_of_key():
    threefry = jax.random.key(123, impl="threefry2x32")
    ways = [123, np.int64(123), threefry, jax.random.key_data(threefry)]
    want = leaf_words(123, ["w"])[0]
    for key in ways:
        np.testing.assert_array_equal(leaf_words(key, ["w"])[0], want)
    four_words = leaf_words(jax.random.key(123, impl="rbg"), ["w"])[0]
    assert four_words.shape == (2,) and (four_words != want).any()


@pytest.mark.parametrize("key", [True, 1.0, "0", None, jnp.zeros(2), jnp.zeros((2, 2))])
def test_what_is_no_key(key):
    with pytest.raises(TypeError, match="key must be an int, a key from"):
        key_words(key)


@pytest.mark.parametrize("key", [-1, 2**64, jax.random.split(jax.random.key(0))])
def test_keys_out_of_range(key):
    with pytest.raises(ValueError, match="key must"):
        key_words(key)
