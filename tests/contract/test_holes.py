"""`None` and Optax's `MaskedNode` are holes, wherever a tree is taken."""

from typing import Any

import jax.numpy as jnp
import optax
import pytest

import optaxtricks as ot

HOLES = {"none": lambda: None, "masked_node": optax.MaskedNode}
each_hole = pytest.mark.parametrize("hole", HOLES.values(), ids=HOLES)


def _holed(hole: Any) -> Any:
    return {"a": jnp.arange(6.0).reshape(2, 3), "gone": hole(), "layer": [hole()]}


@each_hole
def test_functions_of_a_tree_pass_over_holes(hole: Any) -> None:
    tree = _holed(hole)
    assert ot.select(tree, "^a|^gone") == {**_holed(hole), "a": True}
    chosen, rest = ot.split(tree, "^a")
    assert chosen["a"] is tree["a"]
    assert rest["a"] is None and rest["gone"] == tree["gone"]
    labels = ot.label_by_path({"^gone": "x"}, default="y")(tree)
    assert labels == {**_holed(hole), "a": "y"}
    mask = ot.top_fraction_mask(tree, 0.5)
    assert mask["a"].tolist() == [[False] * 3, [True] * 3]
    dropped = ot.dropout_mask(tree, 0.5, key=0, step=0)
    assert dropped["gone"] == tree["gone"]
    group = ot.PruneGroup({"^a": 0})
    pruned = ot.structural_prune(tree, tree, [group], keep_fraction=0.5)
    assert pruned["a"].shape == (1, 3) and pruned["gone"] == tree["gone"]


@each_hole
def test_tools_for_optimizers_pass_over_holes(hole: Any) -> None:
    tree, tx = _holed(hole), ot.lion(0.5)
    assert "gone" not in ot.summary(tx, tree)
    places = ot.state_shardings(tx, tree)
    assert [s is not None for s in [places[0].mu["a"]]] == [True]
    monitor = ot.monitor_groups(lambda tree: ot.label_by_path({"": "all"})(tree))
    _, state = monitor.update(tree, monitor.init(tree))
    assert float(ot.metrics(state)["updates/all/max"]) == 5


@each_hole
@pytest.mark.parametrize("other", HOLES.values(), ids=HOLES)
def test_a_hole_of_one_kind_is_one_of_the_other(hole: Any, other: Any) -> None:
    params, grads = _holed(hole), _holed(other)
    for tx in (ot.scale_by_lion(), ot.lion(0.5), ot.gradient_dropout(0.5, key=0)):
        updates: Any = tx.update(grads, tx.init(params), params)[0]
        assert updates["gone"] == grads["gone"]
