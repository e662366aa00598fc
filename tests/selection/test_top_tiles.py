"""Masks of whole tiles against NumPy's sums, and where they do not fit."""

import contextlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

RNG = np.random.default_rng(0)
TREE = {
    "kernel": RNG.gamma(1, 1, (64, 384)).astype(np.float32),
    "layers": RNG.gamma(1, 1, (3, 16, 256)).astype(np.float32),
}


def sums(leaf: np.ndarray) -> np.ndarray:
    *others, rows, columns = leaf.shape
    return leaf.reshape(*others, rows // 8, 8, columns // 128, 128).sum((-3, -1))


def written_out(tiles: np.ndarray) -> np.ndarray:
    return np.repeat(np.repeat(tiles, 8, -2), 128, -1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_best_tiles_of_all_leaves(dtype: str) -> None:
    scores = {path: jnp.asarray(leaf, dtype) for path, leaf in TREE.items()}
    exact = {path: np.asarray(leaf, np.float32) for path, leaf in scores.items()}
    ranked = np.sort(np.concatenate([sums(leaf).ravel() for leaf in exact.values()]))
    mask = ot.top_fraction_mask(scores, 0.3, granularity="tile")
    for path, leaf in exact.items():
        want = written_out(sums(leaf) >= ranked[-int(0.3 * ranked.size)])
        np.testing.assert_array_equal(mask[path], want)


def test_each_layer_by_itself_and_other_leaves_whole() -> None:
    scores = {**TREE, "bias": np.ones(5, np.float32)}
    options: Any = {"granularity": "tile", "scope": "leaf", "stacked": "layers"}
    mask = ot.top_fraction_mask(scores, 0.5, where="kernel|layers", **options)
    assert mask["bias"] is True
    assert mask["layers"].sum((1, 2)).tolist() == [2 * 1024] * 3
    layer = ot.top_fraction_mask(TREE["layers"][1], 0.5, granularity="tile")
    np.testing.assert_array_equal(mask["layers"][1], layer)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [P("x", "y"), P(None, ("x", "y"))], ids=str)
def test_masks_lie_as_their_scores_do(spec: P, kind: AxisType) -> None:
    """With 384 columns over 8 devices tiles lie across them, and sums are near ties."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    tile = np.exp(3 * RNG.standard_normal((8, 128))).astype(np.float32)
    scores = np.tile([RNG.permutation(tile, 0) for _ in range(3)], (8, 1, 1))
    scores = np.concatenate(np.split(scores.reshape(-1, 128), 3), 1)
    want = ot.top_fraction_mask(scores, 0.25, granularity="tile")
    there = jax.device_put(scores, NamedSharding(mesh, spec))
    for context in (contextlib.nullcontext(), jax.set_mesh(mesh)):
        with context:
            got = ot.top_fraction_mask(there, 0.25, granularity="tile")
        assert got.sharding == there.sharding
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "shape, stacked, message",
    [
        ((128,), None, r"leaf at 'w' has shape \(128,\): leave it out with where"),
        ((12, 128), None, r"multiples of \(8, 128\), but the leaf at 'w' has shape"),
        ((8, 100), None, r"has shape \(8, 100\)"),
        ((8, 8, 128), {"w": 1}, r"of shape \(8, 8, 128\), they lie on axis 1"),
    ],
)
def test_leaves_without_tiles(shape: Any, stacked: Any, message: str) -> None:
    options = {"scope": "leaf", "stacked": stacked} if stacked else {}
    scores = {"w": np.ones(shape, np.float32)}
    with pytest.raises(ValueError, match=message):
        ot.top_fraction_mask(scores, 0.5, granularity="tile", **options)


def test_another_granularity() -> None:
    with pytest.raises(ValueError, match=r"granularity must be one of .*, got 'row'"):
        ot.top_fraction_mask(TREE, 0.5, granularity="row")


def test_sums_of_rows_make_a_mask_of_rows() -> None:
    rows = TREE["kernel"].sum(1, keepdims=True)
    mask = ot.top_fraction_mask(rows, 0.25)
    tx = ot.compact_entries(optax.trace(0.5), mask)
    state = tx.init(jnp.zeros((64, 384)))
    assert mask.shape == (64, 1) and mask.sum() == 16
    assert state.inner.trace.shape == (*state.indices[0].shape[:-1], 384)
