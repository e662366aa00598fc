"""Leaf paths: one spelling, whatever the tree is made of."""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx

from optaxtricks._core.paths import holes, leaves_with_paths, listing
from tests.problems import CONTAINERS, LinenNet, NnxNet, Pair, linen_params, pure


def _paths(tree: Any) -> list[str]:
    return [path for path, _ in leaves_with_paths(tree)]


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=list(CONTAINERS))
def test_every_container_spells_its_paths_alike(container: Any) -> None:
    assert _paths(container(1.0, 2.0)) == ["layer/b", "layer/w"]


def test_linen_and_nnx_modules_spell_their_paths_alike() -> None:
    want = ["layer/bias", "layer/kernel", "scale"]
    assert sorted(_paths(linen_params())) == want
    wrapped = nnx.state(NnxNet(), nnx.Param)
    assert sorted(_paths(wrapped)) == want
    assert sorted(_paths(pure(wrapped))) == want
    assert sorted(_paths(nnx.to_pure_dict(wrapped))) == want


def test_indices_are_steps_of_a_path() -> None:
    tree = {"blocks": [(1.0, {"w": 2.0}), Pair(3.0, [4.0])]}
    want = ["blocks/0/0", "blocks/0/1/w", "blocks/1/b", "blocks/1/w/0"]
    assert _paths(tree) == want
    assert _paths({7: 1.0}) == ["7"]
    assert _paths(1.0) == [""]


def test_only_a_trailing_attribute_named_value_is_dropped() -> None:
    assert _paths({"value": {"w": 1.0}, "x": {"value": 2.0}}) == ["value/w", "x/value"]
    assert _paths(nnx.Param(jnp.ones(2))) == [""]


def test_a_field_called_value_beside_others_keeps_its_name() -> None:
    attention = collections.namedtuple("Attention", "query value")
    assert _paths({"at": attention(1.0, 2.0)}) == ["at/query", "at/value"]
    assert _paths(attention(None, 2.0)) == ["value"]


def test_a_variable_that_holds_a_tree_adds_no_step() -> None:
    held = nnx.Param({"a": jnp.ones(3), "b": jnp.ones(2)})
    assert _paths({"p": held}) == ["p/a", "p/b"]


def test_linen_boxes_add_no_step() -> None:
    boxed = nn.Partitioned(jnp.ones((2, 3)), names=("rows", None))
    assert _paths({"layer": {"kernel": boxed}}) == ["layer/kernel"]
    init = nn.with_partitioning(nn.initializers.ones, (None, "columns"))
    net = nn.Dense(4, kernel_init=init, name="layer")
    params = net.init(jax.random.key(0), jnp.ones((1, 6)))["params"]
    assert sorted(_paths(params)) == ["bias", "kernel"]


def test_paths_come_in_leaf_order_with_their_leaves() -> None:
    tree = {"b": 1.0, "a": [2.0, 3.0]}
    assert leaves_with_paths(tree) == [("a/0", 2.0), ("a/1", 3.0), ("b", 1.0)]


def test_holes_are_found_by_path() -> None:
    tree = {"a": None, "b": [optax.MaskedNode(), 1.0], "c": {}}
    assert holes(tree) == ["a", "b/0"]
    assert holes({"a": 1.0}) == []
    wrapped = nnx.state(NnxNet(), nnx.Param)
    masked = jax.tree.map(lambda leaf: None, wrapped)
    assert sorted(holes(masked)) == ["layer/bias", "layer/kernel", "scale"]


def test_a_long_listing_is_cut_and_counted() -> None:
    assert listing([]) == "(none)"
    assert listing(["a", "b/c"]) == "'a', 'b/c'"
    assert listing(map(str, range(33)), limit=2) == "'0', '1', and 31 more"
    assert listing(map(str, range(30))).endswith("'29'")


def test_the_test_networks_compute_the_same_kind_of_thing() -> None:
    out: Any = LinenNet().apply({"params": linen_params()}, jnp.ones((2, 6)))
    assert out.shape == NnxNet()(jnp.ones((2, 6))).shape
