"""Random words of layers: their own, and independent by the tests of the hash."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from optaxtricks._core.counter_hash import entry_words, leaf_words, step_words
from optaxtricks._core.layers import Layer, one_layer_seen
from tests.core.test_counter_hash import correlation

N = 2**14


def seeds(layers, *, key=0, path="layers/w"):
    """The words of some layers of a stack."""

    def one(number):
        with one_layer_seen({path: Layer(number, len(layers))}):
            return leaf_words(key, [path])[0]

    return jax.vmap(one)(jnp.asarray(layers, jnp.int32))


def streams(layers, *, step=0, n=N, **how):
    like = jax.ShapeDtypeStruct((n,), jnp.float32)
    words = lambda seed: entry_words(like, seed ^ step_words(step), "element")
    return np.asarray(jax.vmap(words)(seeds(layers, **how)))


def whole(path="layers/w", key=0):
    """The words of a leaf of this path that is no stack."""
    like = jax.ShapeDtypeStruct((N,), jnp.float32)
    seed = leaf_words(key, [path])[0] ^ step_words(0)
    return np.asarray(entry_words(like, seed, "element"))


def test_stored_words_never_change():
    """A changed hash would change every mask of every resumed run."""
    first, second = [3638893426, 1914283797], [2255490658, 2048461650]
    assert seeds([0, 1]).tolist() == [first, second]


def test_layers_are_independent():
    found = streams([0, 1, 2, 3, 11, 12, 63, 64, 95, 255, 256, 2**16])
    for a, b in itertools.combinations(found, 2):
        assert abs(correlation(a, b)) < 5


def test_a_leaf_outside_draws_what_no_layer_draws():
    for layer in streams(range(16)):
        assert abs(correlation(layer, whole())) < 5


def test_stacks_of_one_length_are_independent():
    one, two = streams(range(8)), streams(range(8), path="decoder/layers/w")
    for a, b in itertools.product(one, two):
        assert abs(correlation(a, b)) < 5


def test_layers_of_other_steps_and_keys_are_independent():
    """A layer's number must not make up for a step's or a key's."""
    kinds = [streams(range(4), step=s, key=k) for s in range(3) for k in range(3)]
    for a, b in itertools.combinations(np.concatenate(kinds), 2):
        assert abs(correlation(a, b)) < 5


def test_no_two_layers_share_their_words():
    found = np.asarray(seeds(range(2**16)))
    assert len(np.unique(found, axis=0)) == 2**16
    for column in found.T:
        bits = np.unpackbits(np.ascontiguousarray(column).view(np.uint8))
        rates = bits.reshape(-1, 32).mean(0)
        assert (abs(rates - 0.5) < 5 * 0.5 / 2**8).all()


def test_one_entry_over_layers_is_random():
    """Down the layers as along the entries: every bit fair, neighbours unrelated."""
    stream = streams(range(2**16), n=4)
    for entry in stream.T:
        bits = np.unpackbits(np.ascontiguousarray(entry).view(np.uint8))
        rates = bits.reshape(-1, 32).mean(0)
        assert (abs(rates - 0.5) < 5 * 0.5 / 2**8).all()
        for lag in (1, 2, 3, 12, 64, 256):
            assert abs(correlation(entry[lag:], entry[:-lag])) < 5


def test_bytes_over_layers_are_uniform():
    stream = streams(range(2**12), n=2**8)
    for shift in (0, 8, 16, 24):
        top = ((stream >> shift) & 255).T.ravel().astype(np.int64)  # layers run first
        for values, cells in ((top, 256), (top[:-1:2] * 256 + top[1::2], 65536)):
            expected = values.size / cells
            chi2 = ((np.bincount(values, minlength=cells) - expected) ** 2).sum()
            score = (chi2 / expected - (cells - 1)) / math.sqrt(2 * (cells - 1))
            assert abs(score) < 5


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("granularity", ["element", "row", "leaf"])
def test_dropout_takes_them(axis, granularity):
    """The mask of a layer is one function of its number, on any axis, at any step."""
    shape = [6, 5]
    shape.insert(axis, 12)
    grads = {"layers": jnp.ones(shape), "w": jnp.ones((12, 4))}
    how = {"key": 3, "granularity": granularity}
    stacks = {"^layers": axis}
    tx = ot.per_layer(ot.gradient_dropout(0.5, **how), stacks)
    state = tx.init(grads)
    for step in range(3):
        got, state = jax.jit(tx.update)(grads, state)
        mask = ot.dropout_mask(grads, 0.5, step=step, stacked=stacks, **how)
        for name in grads:
            np.testing.assert_array_equal(got[name] != 0, mask[name])
        layers = jnp.moveaxis(mask["layers"], axis, 0)
        usual = {"layers": jnp.ones((12, 6, 5))}
        first = ot.dropout_mask(usual, 0.5, step=step, stacked="layers", **how)
        np.testing.assert_array_equal(layers, first["layers"])
        # A layer more or less changes no other layer's draws.
        fewer = {"layers": jnp.ones((7, 6, 5))}
        some = ot.dropout_mask(fewer, 0.5, step=step, stacked="layers", **how)
        np.testing.assert_array_equal(layers[:7], some["layers"])
        plain = ot.dropout_mask(grads, 0.5, step=step, **how)
        np.testing.assert_array_equal(plain["w"], mask["w"])
    if granularity == "leaf":
        assert 0 < layers[:, 0, 0].sum() < 12
