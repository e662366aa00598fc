"""Top-fraction masks of stacks: those of the layers, wherever the layers are."""

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
RULES = pytest.mark.parametrize("rule", ["exact", "percentile"])


def drawn(tied, *shape, dtype=np.float32):
    value = RNG.integers(0, 4, shape) if tied else RNG.gamma(0.3, 1, shape)
    return jnp.asarray(np.float32(value), dtype)


def layers_of(leaf, axis):
    """The stack as a list of layers."""
    return [jnp.take(leaf, i, axis) for i in range(leaf.shape[axis])]


def unrolled(scores, fraction, axis, **how):
    """The mask of the tree with a list in place of the stack, stacked again."""
    listed = {**scores, "layers": layers_of(scores["layers"], axis)}
    mask = ot.top_fraction_mask(listed, fraction, scope="leaf", **how)
    return {**mask, "layers": np.stack(mask["layers"], axis)}


def assert_equal(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@RULES
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("fraction", [1e-6, 0.3, 0.87, 1.0])
def test_a_stack_equals_the_list_of_its_layers(rule, dtype, tied, fraction):
    scores = {"embed": drawn(tied, 5, 3), "layers": drawn(tied, 4, 5, 6, dtype=dtype)}
    for axis in range(3):
        stacked = {"^layers": axis - 3 if axis == 2 else axis}
        how = {"scope": "leaf", "rule": rule, "stacked": stacked}
        got = ot.top_fraction_mask(scores, fraction, **how)
        assert_equal(got, unrolled(scores, fraction, axis, rule=rule))


def test_every_layer_keeps_the_same_number_whatever_its_scale():
    """One ranking of the leaf would keep the last layer alone."""
    scale = np.array([1e-3, 1, 1e3], np.float32)
    leaf = drawn(False, 6, 3, 10) * scale.reshape(1, 3, 1)
    how = {"scope": "leaf", "stacked": {"w": 1}}
    mask = ot.top_fraction_mask({"w": leaf}, 0.3, **how)["w"]
    assert np.sum(mask, axis=(0, 2)).tolist() == [18, 18, 18]
    whole = ot.top_fraction_mask({"w": leaf}, 0.3, scope="leaf")["w"]
    assert np.sum(whole, axis=(0, 2)).tolist() != [18, 18, 18]


def test_ties_fall_to_the_first_position_of_each_layer():
    how = {"scope": "leaf", "stacked": {"": 1}}
    mask = ot.top_fraction_mask(jnp.ones((2, 3, 2)), 0.75, **how)
    want = np.array([[True, True], [True, False]])
    np.testing.assert_array_equal(mask, np.stack([want] * 3, 1))


def test_layers_of_one_entry_and_stacks_of_one_layer():
    for shape in ((5,), (1, 4), (1, 1)):
        leaf = drawn(False, *shape)
        how = {"scope": "leaf", "stacked": ""}
        mask = ot.top_fraction_mask(leaf, 0.5, **how)
        assert_equal(mask, unrolled({"layers": leaf}, 0.5, 0)["layers"])


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_stacks(shape):
    scores = {"w": jnp.ones(shape), "b": jnp.arange(2.0)}
    mask = ot.top_fraction_mask(scores, 0.5, scope="leaf", stacked="w")
    assert mask["w"].shape == shape and mask["w"].dtype == bool
    assert mask["b"].tolist() == [False, True]


def test_float64_is_ranked_in_full():
    with jax.enable_x64(True):
        steps = np.stack([RNG.permutation(64) for _ in range(3)])
        leaf = jnp.asarray((1 + steps * 2.0**-52) * [[1], [2**40], [2**-900]])
        mask = ot.top_fraction_mask(leaf, 0.5, scope="leaf", stacked="")
        np.testing.assert_array_equal(mask, steps >= 32)


def test_only_eligible_leaves_matter():
    scores = {
        "layers": {"kernel": drawn(False, 3, 4), "scale": jnp.ones(3), "none": None},
        "head": jnp.ones(2),
        "out": optax.MaskedNode(),
    }
    # The scale has no axis 1, but it is not ranked.
    how = {"scope": "leaf", "where": "kernel", "stacked": {"^layers": 1}}
    mask = ot.top_fraction_mask(scores, 0.5, **how)
    assert np.sum(mask["layers"]["kernel"], axis=0).tolist() == [1] * 4
    assert mask["layers"]["scale"] is mask["head"] is mask["layers"]["none"] is True
    assert mask["out"] == optax.MaskedNode()
    only_head = ot.top_fraction_mask(scores, 0.5, **{**how, "where": "head"})
    assert only_head["layers"]["kernel"] is True
    message = r"stacked: the leaf at 'layers/scale' has shape \(3,\) and so no layer"
    with pytest.raises(ValueError, match=message):
        ot.top_fraction_mask(scores, 0.5, **{**how, "where": "^layers"})


def test_stacked_needs_the_scope_of_a_leaf():
    message = "stacked needs scope='leaf', got scope='global'"
    with pytest.raises(ValueError, match=message):
        ot.top_fraction_mask({"w": jnp.ones(2)}, 0.5, stacked="w")


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "spec", [P("x", "y"), P("y", "x"), P(None, None, "x"), P(("x", "y")), P()], ids=str
)
def test_on_a_mesh_the_masks_are_the_same_and_stay_there(kind, axis, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    scores = drawn(True, 8, 8, 12)
    there = jax.device_put(scores, NamedSharding(mesh, spec))
    how = {"scope": "leaf", "stacked": {"w": axis}}
    want = ot.top_fraction_mask({"w": scores}, 0.3, **how)["w"]
    got = ot.top_fraction_mask({"w": there}, 0.3, **how)["w"]
    np.testing.assert_array_equal(got, want)
    assert got.sharding.is_equivalent_to(there.sharding, 3)
