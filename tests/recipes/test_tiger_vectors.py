"""Which leaves Tiger moves as vectors: by name, by rank, or as it is told."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import optaxtricks as ot
from tests.problems import CONTAINERS, assert_same, gradients, small_tree

# One step of a leaf whose entries are all `SIZE`, so that this is its mean square root.
RATE, SIZE, DECAY = 0.5, 4.0, 0.25
VECTOR = -RATE / 2
MATRIX = -RATE * SIZE * (1 + DECAY * SIZE)


def full(*shape: int) -> jax.Array:
    return jnp.full(shape, SIZE)


def moved(params: Any, **options: Any) -> list[float]:
    """The one number by which each leaf moves under gradients of ones."""
    tx = ot.tiger(RATE, weight_decay=DECAY, **options)
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    numbers = [np.unique(np.asarray(leaf)) for leaf in jax.tree.leaves(updates)]
    assert all(x.size == 1 for x in numbers)
    return [x.item() for x in numbers]


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(
    ("name", "is_vector"),
    [
        ("bias", True),
        ("scale", True),
        ("beta", True),
        ("gamma", True),
        ("offset", True),
        ("kernel", False),
        ("embedding", False),
        ("rel_bias", False),
        ("betas", False),
        ("Bias", False),
    ],
)
def test_a_name_or_fewer_than_two_axes_make_a_vector(
    name: str, is_vector: bool, shape: tuple[int, ...], container: Any
) -> None:
    params = container({name: full(*shape)}, {"kernel": full(2, 3)})
    want = VECTOR if is_vector or len(shape) < 2 else MATRIX
    assert moved(params) == [want, MATRIX]


def test_only_the_last_step_of_a_path_is_a_name() -> None:
    params = {"bias": {"kernel": full(2, 3)}, "scale": [full(2, 3)]}
    assert moved(params) == [MATRIX, MATRIX]
    assert moved(full(2, 3)) == [MATRIX]


def test_a_linen_box_is_no_step() -> None:
    boxed = nn.Partitioned(full(2, 3), names=(None, None))
    assert moved({"bias": boxed, "kernel": boxed}) == [VECTOR, MATRIX]


def attention(library: str) -> Any:
    """Parameters of self-attention, with biases of shape (heads, head size)."""
    if library == "linen":
        net: Any = nn.MultiHeadDotProductAttention(num_heads=2)
        return net.init(jax.random.key(0), jnp.ones((1, 3, 8)))["params"]
    heads: Any = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    return nnx.state(heads, nnx.Param)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_all_biases_of_attention_are_vectors(library: str) -> None:
    params = jax.tree.map(lambda leaf: full(*leaf.shape), attention(library))
    is_bias = jax.tree.leaves(ot.select(params, r"bias$"))
    flat = [leaf.ndim < 2 for leaf in jax.tree.leaves(params)]
    assert (len(is_bias), sum(is_bias), sum(flat)) == (8, 4, 1)
    assert moved(params) == [VECTOR if chosen else MATRIX for chosen in is_bias]


def test_a_bias_of_two_axes_takes_half_the_rate() -> None:
    params = {"query": {"kernel": jnp.full((8, 2, 4), 0.1), "bias": jnp.zeros((2, 4))}}
    tx = ot.tiger(1e-2)
    ones = jax.tree.map(jnp.ones_like, params)
    updates: Any = tx.update(ones, tx.init(params), params)[0]
    assert_same(updates["query"]["bias"], jnp.full((2, 4), -5e-3), ulps=1)


PARAMS = {"bias": full(2, 3), "flat": full(3), "kernel": full(2, 3), "log": full(3, 2)}


@pytest.mark.parametrize(
    ("vectors", "chosen"),
    [
        ("log", "log"),
        ("^(bias|log)$", "bias log"),
        (lambda path, leaf: leaf.shape == (2, 3), "bias kernel"),
        ({"bias": False, "flat": False, "kernel": True, "log": False}, "kernel"),
        (".*", "bias kernel log"),
        ("flat", ""),
    ],
)
def test_a_selector_replaces_the_names_and_not_the_rank(
    vectors: Any, chosen: str
) -> None:
    want = [VECTOR if k in chosen or k == "flat" else MATRIX for k in PARAMS]
    assert moved(PARAMS, vectors=vectors) == want


def test_rows_are_those_of_matrices_alone() -> None:
    rows = jnp.asarray([[1.0, 1.0], [4.0, 4.0]])
    params = {"emb": {"bias": rows, "table": rows}}
    ones = jax.tree.map(jnp.ones_like, params)
    for vectors, by_row in ((None, "table"), ("table", "bias")):
        tx = ot.tiger(0.5, weight_decay=0.0, embeddings="emb", vectors=vectors)
        updates: Any = tx.update(ones, tx.init(params), params)[0]
        want = {"bias": jnp.full((2, 2), -0.25), "table": jnp.full((2, 2), -0.25)}
        assert_same(updates["emb"], want | {by_row: -0.5 * rows}, ulps=1)


@pytest.mark.usefixtures("standard_promotion")
def test_mixed_sign_hands_it_on() -> None:
    params, grads = small_tree(), gradients(small_tree())
    mixed = ot.mixed_sign(0.1, embeddings="emb", sign="tiger", vectors="w$")
    alone = ot.tiger(0.1, vectors="w$")
    got: Any = mixed.update(grads, mixed.init(params), params)[0]
    want: Any = alone.update(grads, alone.init(params), params)[0]
    assert_same(got["layer"], want["layer"])
    plain = ot.tiger(0.1)
    other: Any = plain.update(grads, plain.init(params), params)[0]
    assert (got["layer"]["w"] != other["layer"]["w"]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vectors": "no"}, ValueError, "vectors 'no' matches no leaf. Paths: 'bias'"),
        ({"vectors": 3}, TypeError, "vectors must be a pattern"),
        ({"embeddings": "bias|flat"}, ValueError, "choose no matrix"),
        ({"embeddings": "log", "vectors": "log"}, ValueError, "'log' choose no matrix"),
    ],
    ids=str,
)
def test_bad_choices(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ot.tiger(0.1, **options).init(PARAMS)


def test_lion_has_no_vectors() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'vectors'"):
        ot.mixed_sign(0.1, embeddings="emb", vectors="w")


def test_a_masked_leaf_shows_that_a_selector_is_no_misprint() -> None:
    shown = {name: name != "log" for name in PARAMS}
    tx: Any = optax.masked(ot.tiger(RATE, vectors="log"), shown)
    updates = tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]
    assert updates["log"] is PARAMS["log"]
    assert updates["bias"][0, 0] != VECTOR
