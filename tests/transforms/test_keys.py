"""Keys of every kind, known or traced: one number, one mask."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from optaxtricks._core.counter_hash import key_words
from tests.problems import assert_same, gradients, small_tree

FACTORIES: dict[str, Any] = {
    "gradient_dropout": lambda key: ot.gradient_dropout(0.5, key=key),
    "rows": lambda key: ot.gradient_dropout(0.5, key=key, granularity="row"),
    "update_dropout": lambda key: ot.update_dropout(
        0.5, key=key, distribution="gaussian"
    ),
    "child_tuning_f": lambda key: ot.child_tuning_f(optax.sgd(0.5), 0.5, key=key),
    "magma": lambda key: ot.magma(optax.sgd(0.5), key=key),
    "per_layer": lambda key: ot.per_layer(ot.gradient_dropout(0.5, key=key), "^emb"),
}
each_factory = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
GRADS = gradients(small_tree())
# Traced inside, a key is known by its bits alone.
NUMBERS = [0, 7, 2**31 - 1]


def same_words(got: Any, want: Any) -> None:
    np.testing.assert_array_equal(got, want)
    assert got.dtype == np.uint32


@pytest.mark.parametrize("number", NUMBERS)
def test_an_array_of_a_number_is_the_number(number: int) -> None:
    want = key_words(number)
    same_words(jax.random.key_data(jax.random.key(number)), want)
    for kind in (np.int32, np.uint32, np.int64, np.uint64):
        same_words(key_words(kind(number)), want)
        same_words(key_words(np.array(number, kind)), want)
    for kind in (jnp.int32, jnp.uint32):
        same_words(key_words(kind(number)), want)
        same_words(jax.jit(key_words)(kind(number)), want)
    same_words(jax.jit(key_words)(number), want)
    same_words(key_words(jnp.int8(7)), key_words(7))
    same_words(jax.jit(key_words)(jnp.uint8(200)), key_words(200))


def test_numbers_of_64_bits() -> None:
    with jax.enable_x64(True):
        for number in (2**31, 2**32 + 5, 2**63 - 1, 2**64 - 1):
            want = key_words(number)
            assert want.tolist() == [number >> 32, number & (2**32 - 1)]
            same_words(key_words(np.uint64(number)), want)
            same_words(jax.jit(key_words)(jnp.uint64(number)), want)
            if number < 2**63:
                same_words(jax.jit(key_words)(jnp.int64(number)), want)


def test_a_negative_number_is_refused_where_it_is_known_and_else_taken_by_its_bits():
    for number in (-1, np.int32(-1), jnp.int32(-1), np.array(-1)):
        with pytest.raises(ValueError, match=r"key must lie in \[0, 2\*\*64\), got -1"):
            key_words(number)
    got = jax.jit(key_words)(jnp.int32(-1))
    same_words(got, key_words(2**32 - 1))
    same_words(got, jax.jit(lambda x: jax.random.key_data(jax.random.key(x)))(-1))


@each_factory
def test_a_traced_key_gives_the_state_of_the_known_one(make: Any) -> None:
    params = small_tree()
    init = jax.jit(lambda key: make(key).init(params))
    assert_same(init(5), make(5).init(params))
    assert_same(make(jnp.int32(5)).init(params), make(5).init(params))
    typed = jax.random.key(5)
    for key in typed, jax.random.key_data(typed), jax.random.key(5, impl="rbg"):
        assert_same(init(key), make(key).init(params))
    assert_same(init(typed), init(5))
    assert len({str(jax.tree.leaves(init(key))) for key in range(4)}) == 4


def run(make: Any, key: Any, grads: Any) -> Any:
    """Two updates, one after the other."""
    tx = make(key)
    first, state = tx.update(grads, tx.init(grads))
    return first, tx.update(grads, state)[0]


@each_factory
@pytest.mark.parametrize("kind", ["typed", "legacy", "number"])
def test_members_of_an_ensemble_have_masks_of_their_own(make: Any, kind: str) -> None:
    keys: Any = jax.random.split(jax.random.key(3), 3)
    if kind != "typed":
        keys = jax.random.key_data(keys) if kind == "legacy" else jnp.arange(3)
    every = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), GRADS)
    got = jax.vmap(lambda key, grads: run(make, key, grads))(keys, every)
    want = [run(make, keys[i], GRADS) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *want)
    # The logarithm of Gaussian noise rounds by the vector that it is part of.
    assert_same(got, stacked, ulps=4)
    zeros = jax.tree.map(lambda leaf: leaf == 0, got)
    if make is FACTORIES["gradient_dropout"]:
        assert_same(zeros, jax.tree.map(lambda leaf: leaf == 0, stacked))
        emb = zeros[0]["emb"]
        assert not (emb[0] == emb[1]).all() and not (emb[1] == emb[2]).all()


def test_state_and_mask_of_an_ensemble() -> None:
    keys = jax.random.split(jax.random.key(1), 4)
    params = {"w": jnp.ones((4, 8, 3))}
    make = lambda key: ot.gradient_dropout(0.5, key=key, rescale=False)
    state = jax.vmap(lambda key, p: make(key).init(p))(keys, params)
    # The key is used by `init` alone, so any will do for `update`.
    update: Any = make(0).update
    kept, _ = jax.vmap(update)(params, state)
    mask = lambda key, p: ot.dropout_mask(p, 0.5, key=key, step=0)
    want = jax.vmap(mask)(keys, params)["w"]
    np.testing.assert_array_equal(kept["w"] != 0, want)
    alone = mask(keys[2], {"w": params["w"][2]})["w"]
    np.testing.assert_array_equal(want[2], alone)


def test_sampled_labels_take_every_kind_of_key() -> None:
    x = jnp.arange(12.0).reshape(4, 3) / 12
    log_p = lambda params, row: jax.nn.log_softmax(params * row)
    fisher = lambda key: ot.fisher_information(
        log_p, jnp.ones(3), x, labels="sampled", key=key
    )
    want = fisher(2**31 - 1)
    for key in (np.int32(2**31 - 1), jnp.uint32(2**31 - 1), np.array(2**31 - 1)):
        assert_same(fisher(key), want)
