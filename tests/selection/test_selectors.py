"""select, split and merge: every kind of selector on every kind of tree."""

import re
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import optaxtricks as ot
from tests.problems import CONTAINERS, NnxNet, Pair, assert_same, linen_params, pure

TREE = {"emb": 0.0, "layer": [{"b": 1.0, "w": 2.0}, {"b": 3.0, "w": 4.0}]}
each_container = pytest.mark.parametrize(
    "container", CONTAINERS.values(), ids=list(CONTAINERS)
)


def _chosen(tree: Any, selector: Any) -> list[bool]:
    return jax.tree.leaves(ot.select(tree, selector))


@pytest.mark.parametrize(
    ("selector", "want"),
    [
        ("b", [True, True, False, True, False]),  # searched, so emb is in
        ("^layer", [False, True, True, True, True]),
        ("/w$", [False, False, True, False, True]),
        (r"layer/1", [False, False, False, True, True]),
        ("emb|0/b", [True, True, False, False, False]),
        (re.compile("EMB", re.IGNORECASE), [True, False, False, False, False]),
        (lambda path, leaf: leaf > 2.5, [False, False, False, True, True]),
        (lambda path, leaf: np.bool_("w" in path), [False, False, True, False, True]),
        ({"emb": True, "layer": False}, [True, False, False, False, False]),
        (
            {"emb": False, "layer": [True, {"b": False, "w": True}]},
            [False, True, True, False, True],
        ),
        (True, [True] * 5),
    ],
)
def test_each_kind_of_selector(selector: Any, want: list[bool]) -> None:
    chosen = ot.select(TREE, selector)
    assert jax.tree.leaves(chosen) == want
    assert all(type(leaf) is bool for leaf in jax.tree.leaves(chosen))
    assert jax.tree.structure(chosen) == jax.tree.structure(TREE)


@each_container
@pytest.mark.parametrize("selector", ["w", "layer/w", lambda path, leaf: "w" in path])
def test_every_container_is_read_alike(container: Any, selector: Any) -> None:
    tree = container(jnp.ones(3), jnp.ones((2, 3)))
    assert _chosen(tree, selector) == [False, True]
    assert _chosen(tree, container(True, False)) == [True, False]
    kept, rest = ot.split(tree, selector)
    assert len(jax.tree.leaves(kept)) == len(jax.tree.leaves(rest)) == 1
    assert_same(ot.merge(kept, rest), tree)


@each_container
@pytest.mark.parametrize("other", CONTAINERS.values(), ids=list(CONTAINERS))
def test_a_tree_of_bools_may_come_from_another_container(
    container: Any, other: Any
) -> None:
    tree = container(jnp.ones(3), jnp.ones((2, 3)))
    assert _chosen(tree, other(False, True)) == [False, True]


def test_bools_made_from_arrays_fit_variables_and_the_other_way_round() -> None:
    wrapped = nnx.state(NnxNet(), nnx.Param)
    arrays = pure(wrapped)
    for source in wrapped, arrays:
        bools = ot.select(source, "kernel")
        assert jax.tree.structure(bools) == jax.tree.structure(source)
        for target in wrapped, arrays:
            chosen = ot.select(target, bools)
            assert sorted(jax.tree.leaves(chosen)) == [False, False, True]
            assert jax.tree.leaves(chosen) == _chosen(target, "kernel")


def test_linen_boxes_and_frozen_dicts() -> None:
    boxed = nn.Partitioned(jnp.ones((2, 3)), names=("rows", None))
    tree = {"layer": {"kernel": boxed, "bias": jnp.ones(3)}}
    assert _chosen(tree, "layer/kernel$") == [False, True]
    kept, rest = ot.split(tree, "kernel")
    assert isinstance(kept["layer"]["kernel"], nn.Partitioned)
    assert_same(ot.merge(kept, rest), tree)
    frozen = flax.core.freeze({"layer": {"bias": 1.0, "kernel": 2.0}})
    assert _chosen(frozen, {"layer": {"bias": True, "kernel": False}}) == [True, False]


def test_the_mask_argument_of_optax_takes_what_select_gives() -> None:
    params = linen_params()
    tx = optax.masked(optax.set_to_zero(), ot.select(params, "bias"))
    ones = jax.tree.map(jnp.ones_like, params)
    updates: Any = tx.update(ones, tx.init(params))[0]
    assert not updates["layer"]["bias"].any()
    assert updates["layer"]["kernel"].all()


def test_masked_out_leaves_count_as_known_paths() -> None:
    tree = {"a": optax.MaskedNode(), "b": None, "c": 1.0}
    assert _chosen(tree, "a") == [False]
    assert _chosen(tree, "b") == [False]
    assert _chosen(tree, {"a": True, "b": False, "c": False}) == [False]
    with pytest.raises(ValueError, match=r"matches no leaf. Paths: 'c', 'a', 'b'"):
        ot.select(tree, "d")
    with pytest.raises(ValueError, match="matches no leaf"):
        ot.select(tree, {"c": False})


@pytest.mark.parametrize("selector", ["x", lambda path, leaf: False, True, {"a": True}])
def test_a_tree_without_leaves_selects_nothing(selector: Any) -> None:
    for tree in ({}, {"a": None}, optax.MaskedNode()):
        assert ot.select(tree, selector) == tree


@pytest.mark.parametrize("call", [ot.select, ot.split])
@pytest.mark.parametrize(
    ("selector", "error", "message"),
    [
        ("ebm", ValueError, r"selector 'ebm' matches no leaf. Paths: 'emb', 'layer/0"),
        (re.compile("q"), ValueError, r"selector 'q' matches no leaf"),
        (False, ValueError, r"selector \(a tree of bools\) matches no leaf"),
        (lambda path, leaf: False, ValueError, r"\(a predicate\) matches no"),
        ("(", ValueError, r"selector '\(' is not a regular expression: missing \)"),
        ({"emb": True}, ValueError, r"says nothing about the leaf at 'layer/0/b'; its"),
        ({"emb": True, "layers": True}, ValueError, r"no leaf: 'layers'"),
        ({"emb": True, "layer": False, "x": {"y": True}}, ValueError, "leaf: 'x/y'"),
        (lambda path, leaf: leaf, TypeError, r"must give a bool for 'emb', got 0.0"),
        (lambda path, leaf: None, TypeError, r"must give a bool for 'emb', got None"),
        (3, TypeError, r"must be a pattern, a predicate of \(path, leaf\) or a tree"),
        ({}, TypeError, r"or a tree of bools, got \{\}"),
        (None, TypeError, r"or a tree of bools, got None"),
        ({"a/b": True, "a": {"b": True}}, ValueError, r"two leaves of the same path"),
        ({"emb": 1, "layer": True}, TypeError, r"tree of bools, got .*'int'"),
        (["emb"], TypeError, r"tree of bools, got .*'str'"),
    ],
)
def test_bad_selectors_are_errors_that_say_so(
    call: Any, selector: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(TREE, selector)


def test_every_path_is_listed_unless_there_are_too_many() -> None:
    wide = {f"leaf{i:02}": 0.0 for i in range(40)}
    with pytest.raises(ValueError, match=r"'leaf00', .*'leaf29', and 10 more\. Nea"):
        ot.select(wide, "nowhere")


def test_merge_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"leaves present in both trees: 'a', 'c/0'"):
        ot.merge({"a": 1.0, "b": None, "c": [2.0]}, {"a": 1.0, "b": 1.0, "c": [3.0]})
    with pytest.raises(ValueError, match=r"merge needs equal structures, got .*'a'.*"):
        ot.merge({"a": 1.0}, {"b": None})
    with pytest.raises(ValueError, match="merge needs equal structures"):
        ot.merge((1.0, None), [None, 2.0])
    assert ot.merge({"a": None, "b": 1.0}, {"a": None, "b": None}) == {
        "a": None,
        "b": 1.0,
    }


HOLES = {"none": None, "masked": optax.MaskedNode()}


@pytest.mark.parametrize("mine", HOLES.values(), ids=HOLES)
@pytest.mark.parametrize("theirs", HOLES.values(), ids=HOLES)
@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_merge_knows_both_kinds_of_holes(make: Any, mine: Any, theirs: Any) -> None:
    b, w = jnp.ones(2), jnp.zeros((2, 3))
    assert_same(ot.merge(make(b, mine), make(theirs, w)), make(b, w))
    assert_same(ot.merge(make(mine, w), make(b, theirs)), make(b, w))
    # A position that is empty in both is as in the second.
    assert_same(ot.merge(make(b, mine), make(mine, theirs)), make(b, theirs))


def test_merge_puts_together_what_optax_masks_by_a_prefix() -> None:
    params = {"body": {"w": jnp.ones(2), "b": jnp.ones(3)}, "head": jnp.zeros(2)}
    momentum = lambda mask: optax.tree.get(
        optax.masked(optax.trace(0.5), mask).init(params), "trace"
    )
    body = momentum({"body": True, "head": False})
    head = momentum({"body": False, "head": True})
    params = jax.tree.map(jnp.zeros_like, params)
    assert isinstance(head["body"], optax.MaskedNode)
    assert_same(ot.merge(body, head), params)
    assert_same(ot.merge(head, body), params)
    none, rest = ot.split(params, "head")
    assert_same(ot.merge(none, body), params)
    assert_same(ot.merge(head, rest), params)
    with pytest.raises(ValueError, match="present in both trees: 'body/b', 'body/w'"):
        ot.merge(body, rest)
    # None stands for no subtree.
    with pytest.raises(ValueError, match="merge needs equal structures"):
        ot.merge({"body": None, "head": params["head"]}, body)


def test_merge_takes_a_row_sparse_for_one_leaf() -> None:
    rows = ot.RowSparse(jnp.array([0]), jnp.ones((1, 2)), 4)
    whole = ot.merge({"a": rows, "b": None}, {"a": None, "b": 1.0})
    assert whole["a"] is rows
    with pytest.raises(ValueError, match="present in both trees: 'a'"):
        ot.merge({"a": rows}, {"a": rows})


def test_grad_of_the_first_part_differentiates_it_alone() -> None:
    params = {"body": {"w": jnp.full((3,), 2.0)}, "head": Pair(jnp.ones(3), None)}
    head, body = ot.split(params, "head")

    def loss(part: Any) -> jax.Array:
        whole = ot.merge(part, body)
        return (whole["body"]["w"] * whole["head"].b).sum()

    grads = jax.jit(jax.grad(loss))(head)
    assert jax.tree.structure(grads) == jax.tree.structure(head)
    assert [leaf.tolist() for leaf in jax.tree.leaves(grads)] == [[2.0, 2.0, 2.0]]
    # An optimizer over that part alone keeps no state for the rest.
    state = optax.trace(0.5).init(head)
    assert len(jax.tree.leaves(state)) == 1


_KEYS = st.sampled_from(["a", "b", "value", "kernel", "0"])
TREES = st.recursive(
    st.integers(0, 9).map(float) | st.none(),
    lambda child: (
        st.dictionaries(_KEYS, child, max_size=3)
        | st.lists(child, max_size=3)
        | st.tuples(child, child)
        | st.builds(Pair, child, child)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(tree=TREES, threshold=st.integers(0, 9))
def test_merge_undoes_split(tree: Any, threshold: int) -> None:
    leaves = jax.tree.leaves(tree)
    small = lambda path, leaf: leaf < threshold
    assume(not leaves or any(leaf < threshold for leaf in leaves))
    kept, rest = ot.split(tree, small)
    is_none = lambda node: node is None
    assert ot.merge(kept, rest) == ot.merge(rest, kept) == tree
    assert jax.tree.leaves(kept) == [leaf for leaf in leaves if leaf < threshold]
    assert jax.tree.leaves(rest) == [leaf for leaf in leaves if leaf >= threshold]
    layouts = {jax.tree.structure(t, is_leaf=is_none) for t in (tree, kept, rest)}
    assert len(layouts) == 1
    # A tree of bools chooses what the predicate that made it chose.
    if leaves:
        assert ot.split(tree, ot.select(tree, small)) == (kept, rest)
