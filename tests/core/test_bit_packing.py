"""Masks in bits: which bytes, and that their shape tells masks of a leaf apart."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optaxtricks._core.bit_packing import pack, packed_shape, packing_axis, unpack

SIZES = (0, 1, 2, 3, 8, 9, 16, 20)
LEAVES = [s for rank in range(4) for s in itertools.product(SIZES, repeat=rank)]


def masks_of(leaf: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every shape that broadcasts to a leaf, axis by axis."""
    return list(itertools.product(*[sorted({1, size}) for size in leaf]))


def test_no_two_masks_of_a_leaf_have_bits_of_one_shape() -> None:
    for leaf in LEAVES:
        if math.prod(leaf):
            found = [packed_shape(mask, leaf) for mask in masks_of(leaf)]
            assert len(set(found)) == len(found), leaf


def test_a_mask_costs_little_more_than_one_bit_an_entry() -> None:
    for mask, size in (
        ((7, 1, 1), 1),
        ((12, 1, 1), 2),
        ((96, 1, 1, 1), 12),
        ((1, 20), 3),
        ((30522, 1), 3816),
        ((1, 768), 96),
        ((1, 1), 1),
    ):
        like = jax.ShapeDtypeStruct(mask, bool)
        assert jax.eval_shape(pack, like).size == size
        leaf = tuple(2 * n if n == 1 else n for n in mask)
        assert math.prod(packed_shape(mask, leaf)) == size


def test_axes_at_the_end_that_broadcast_take_no_axis_of_the_bits() -> None:
    assert packed_shape((12, 1, 1), (12, 3, 4)) == (2,)
    assert packed_shape((1, 12, 1), (5, 12, 4)) == (1, 2)
    assert packed_shape((1, 1), (2, 3)) == ()
    assert packed_shape((12, 1, 1), (12, 1, 1)) == (2, 1, 1)
    assert packing_axis((3, 1, 64)) == 2


@pytest.mark.parametrize("leaf", [(5,), (8, 3), (9, 16), (16, 1, 5)], ids=str)
def test_round_trip(leaf: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    for shape in masks_of(leaf):
        mask = np.asarray(rng.random(shape) < 0.5)
        packed = pack(mask)
        np.testing.assert_array_equal(packed, pack(jnp.asarray(mask)))
        bits = packed.reshape(packed_shape(shape, leaf))
        np.testing.assert_array_equal(unpack(bits, shape, jnp.zeros(leaf)), mask)
