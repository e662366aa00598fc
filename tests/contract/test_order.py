"""Leaves are matched by path: `init` may have seen another order of them."""

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optaxtricks as ot
from optaxtricks._core.paths import leaves_with_paths
from tests.cases import CASES, Case
from tests.problems import STEPS, assert_same, gradients


def _inside_out(tree: Any) -> Any:
    """Ordered dicts whose keys come in the reverse of their sorted order."""
    if not isinstance(tree, dict):
        return tree
    keys = sorted(tree, reverse=True)
    return collections.OrderedDict((key, _inside_out(tree[key])) for key in keys)


def _by_attribute(tree: Any) -> Any:
    """Named tuples whose fields do."""
    if not isinstance(tree, dict):
        return tree
    keys = sorted(tree, reverse=True)
    return _kind(*keys)(*(_by_attribute(tree[key]) for key in keys))


KINDS: dict[tuple[str, ...], Any] = {}


def _kind(*fields: str) -> Any:
    make: Any = vars(collections)["namedtuple"]
    return KINDS.setdefault(fields, make("Fields", fields))


ORDERS: dict[str, Callable[[Any], Any]] = {
    "ordered_dict": _inside_out,
    "named_tuple": _by_attribute,
}
each_order = pytest.mark.parametrize("reordered", ORDERS.values(), ids=ORDERS)


by_path = {name: case for name, case in CASES.items() if not case.by_structure}
each_case = pytest.mark.parametrize("case", by_path.values(), ids=by_path)


def _made(case: Case, params: Any) -> Any:
    """The case's transformation, with an inner one that matches by path as well."""
    arguments = case.arguments(params)
    if "inner" in arguments:
        drop = ot.update_dropout(0.5, key=8)
        arguments["inner"] = optax.chain(drop, ot.scale_by_tiger(), drop)
    return case.factory(**arguments)


def _table(state: Any) -> dict[str, Any]:
    table = dict(leaves_with_paths(state))
    assert len(table) == len(jax.tree.leaves(state))
    return dict(sorted(table.items()))


@each_order
@each_case
def test_order_of_leaves_in_init_is_of_no_account(
    case: Case, reordered: Callable[[Any], Any]
) -> None:
    params = case.params(jnp.float32)
    tx, extra = _made(case, params), case.extra_args(params)
    plain, state = tx.init(params), tx.init(reordered(params))
    kind = jax.tree.structure(state)
    assert_same(_table(state), _table(plain))
    for seed in range(STEPS):
        grads = gradients(params, seed)
        want, plain = tx.update(grads, plain, params, **extra)
        got, state = tx.update(grads, state, params, **extra)
        assert_same(got, want, ulps=case.ulps)
        assert_same(_table(state), _table(plain), ulps=case.ulps)
        assert jax.tree.structure(state) == kind


@each_order
@each_case
def test_updates_come_back_in_their_containers(
    case: Case, reordered: Callable[[Any], Any]
) -> None:
    params = case.params(jnp.float32)
    tx, extra = _made(case, params), case.extra_args(params)
    grads = gradients(params)
    want, _ = tx.update(grads, tx.init(params), params, **extra)
    # Parameters in one order, updates in another.
    got, _ = tx.update(reordered(grads), tx.init(params), params, **extra)
    assert jax.tree.structure(got) == jax.tree.structure(reordered(grads))
    assert_same(_table(got), _table(want), ulps=case.ulps)


def test_leaves_without_their_like_are_listed_by_path() -> None:
    one = jnp.ones(2)
    state = ot.scale_by_lion().init({"a": one, "b": {"w": one}})
    with pytest.raises(ValueError) as caught:
        ot.scale_by_lion().update({"a": one, "c": {"w": one}}, state)
    assert str(caught.value) == (
        "scale_by_lion got updates with other leaves than the state: missing 'b/w'; "
        "unknown 'c/w'."
    )
    rms = ot.scale_by_param_rms()
    with pytest.raises(ValueError, match=r"params: missing 'b'; unknown 'c'"):
        rms.update({"c": one}, rms.init({"b": one}), {"b": one})
    with pytest.raises(ValueError, match=r"shape \(2,\) at 'b', where params has"):
        rms.update({"b": one}, rms.init({"b": one}), {"b": jnp.ones(3)})


def test_two_leaves_of_one_path_are_matched_by_position_in_equal_trees_alone() -> None:
    tree = {"a": {"b": jnp.ones(2)}, "a/b": -jnp.ones(2)}
    tx = ot.scale_by_lion()
    updates, _ = tx.update(tree, tx.init(tree))
    assert_same(updates, tree)
    with pytest.raises(ValueError, match="two leaves share a path"):
        tx.update(collections.OrderedDict(reversed(tree.items())), tx.init(tree))
    with pytest.raises(ValueError, match="two leaves share a path"):
        tx.update({"a": {"b": jnp.ones(2)}, "c": jnp.ones(2)}, tx.init(tree))
