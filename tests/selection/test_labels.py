"""label_by_path: labels that drive optax.partition in every training loop."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from hypothesis import given, settings
from hypothesis import strategies as st

import optaxtricks as ot
from tests.problems import (
    CONTAINERS,
    LinenNet,
    NnxNet,
    assert_same,
    assert_same_leaves,
    inputs_and_targets,
    linen_params,
    squared_error,
)

TREE = {"emb": 0.0, "layer": [{"b": 1.0, "w": 2.0}, {"b": 3.0, "w": 4.0}]}
# Three speeds for the test networks: slow, fast, and none at all.
LABELS = ot.label_by_path({"kernel$": "slow", "^scale": "fast"}, default="frozen")
SLOW, FAST = 1 / 64, 1 / 16


def _optimizer(labels: Any = LABELS) -> optax.GradientTransformationExtraArgs:
    return optax.partition(
        {
            "slow": optax.sgd(SLOW),
            "fast": optax.sgd(FAST, momentum=0.5),
            "frozen": optax.set_to_zero(),
        },
        labels,
    )


def test_the_first_match_decides() -> None:
    rules = {"1/b": "first", "b": "second", "layer": "third"}
    assert ot.label_by_path(rules)(TREE) == {
        "emb": "second",
        "layer": [{"b": "second", "w": "third"}, {"b": "first", "w": "third"}],
    }
    backwards = dict(reversed(rules.items()))
    labels = ot.label_by_path(backwards)(TREE)
    assert labels["layer"] == [{"b": "third", "w": "third"}] * 2


def test_a_shadowed_pattern_is_no_error_and_a_default_fills_up() -> None:
    shadowed = ot.label_by_path({"": "all", "emb": "never"})
    assert set(jax.tree.leaves(shadowed(TREE))) == {"all"}
    filled = ot.label_by_path({"emb": "one"}, default="rest")
    assert jax.tree.leaves(filled(TREE)) == ["one"] + ["rest"] * 4


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=list(CONTAINERS))
def test_every_container_gets_the_same_labels(container: Any) -> None:
    tree = container(jnp.ones(3), jnp.ones((2, 3)))
    labels = ot.label_by_path({"layer/b$": "plain", "layer/w$": "decay"})(tree)
    assert jax.tree.leaves(labels) == ["plain", "decay"]
    assert jax.tree.structure(labels) == jax.tree.structure(tree)


def test_the_repr_shows_the_rules() -> None:
    labels = ot.label_by_path({"emb": "slow"}, default="fast")
    assert repr(labels) == "PathLabels({'emb': 'slow'}, default='fast')"
    assert isinstance(labels, ot.PathLabels)


def test_uncovered_leaves_are_an_error_that_lists_them() -> None:
    labels = ot.label_by_path({"b$": "plain"})
    message = r"no pattern covers 'layer/0/w', 'layer/1/w', and there is no default"
    with pytest.raises(ValueError, match=message):
        labels({"layer": TREE["layer"]})


def test_patterns_that_match_nothing_are_an_error_that_lists_them() -> None:
    rules = {"emb": "a", "haed": "b", "^w": "c"}
    message = r"match no leaf: 'haed', '\^w'. Paths: 'emb', 'layer/0/b', .*'layer/1/w'"
    with pytest.raises(ValueError, match=message):
        ot.label_by_path(rules, default="rest")(TREE)


@pytest.mark.parametrize(
    ("rules", "default", "error", "message"),
    [
        ([("a", "b")], None, TypeError, r"rules must map patterns to labels, got \[\("),
        ({}, "x", ValueError, "rules must hold at least one pattern"),
        ({"a": 1}, None, TypeError, "rules must map str to str, got 'a': 1"),
        ({2: "b"}, None, TypeError, "rules must map str to str, got 2: 'b'"),
        ({"a": "b"}, 3, TypeError, "default must be a string or None, got 3"),
        ({"[": "b"}, None, ValueError, r"pattern '\[' is not a regular expression: un"),
    ],
)
def test_bad_rules_fail_at_once(
    rules: Any, default: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ot.label_by_path(rules, default=default)


def test_a_tree_without_leaves_has_no_labels_to_check() -> None:
    for tree in ({}, {"a": None}, optax.MaskedNode()):
        assert ot.label_by_path({"nowhere": "x"})(tree) == tree


def test_holes_count_as_known_paths() -> None:
    labels = ot.label_by_path({"^a": "x", "^b": "y"})
    tree = {"a": optax.MaskedNode(), "b": 1.0}
    assert labels(tree) == {"a": optax.MaskedNode(), "b": "y"}
    with pytest.raises(ValueError, match=r"no leaf: '\^c'. Paths: 'b', 'a'"):
        ot.label_by_path({"^b": "y", "^c": "z"})(tree)


def test_partition_inside_masked_sees_the_holes() -> None:
    params = linen_params()
    inner = _optimizer(ot.label_by_path({"kernel": "slow", "scale|bias": "fast"}))
    mask = ot.select(params, "kernel")  # every leaf of "fast" is masked out
    tx = optax.masked(inner, mask)
    ones = jax.tree.map(jnp.ones_like, params)
    updates: Any = tx.update(ones, tx.init(params), params)[0]
    assert (updates["layer"]["kernel"] == -SLOW).all()
    assert (updates["layer"]["bias"] == 1).all()
    twice = optax.masked(optax.partition({"it": tx}, lambda tree: "it"), mask)
    again = twice.update(ones, twice.init(params), params)[0]
    assert_same(again, updates)


def test_optax_finds_parameters_behind_the_labels() -> None:
    params = linen_params()
    tx: Any = _optimizer()
    state = tx.init(params)
    doubled = optax.tree.map_params(tx, lambda leaf: leaf + 1, state)
    before, after = jax.tree.leaves(state), jax.tree.leaves(doubled)
    assert [(a - b).tolist() for a, b in zip(after, before, strict=True)] == [1.0]


@pytest.mark.parametrize("compiled", [False, True])
def test_three_speeds_in_an_nnx_loop(compiled: bool) -> None:
    model, other = NnxNet(), NnxNet()
    start = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    optimizer = nnx.Optimizer(model, _optimizer(), wrt=nnx.Param)
    x, y = inputs_and_targets()
    loss = lambda model: squared_error(model(x), y)

    def step(model: NnxNet, optimizer: Any) -> None:
        optimizer.update(model, nnx.grad(loss)(model))

    run = nnx.jit(step) if compiled else step
    first: Any = nnx.to_pure_dict(nnx.grad(loss)(other))
    run(model, optimizer)
    now: Any = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    _assert_speeds(start, first, now)
    losses = [float(loss(model))]
    for _ in range(3):
        run(model, optimizer)
        losses.append(float(loss(model)))
    now = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert_same_leaves(now["layer"]["bias"], start["layer"]["bias"])


@pytest.mark.parametrize("compiled", [False, True])
def test_three_speeds_in_a_linen_loop(compiled: bool) -> None:
    net: Any = LinenNet()
    start = linen_params()
    x, y = inputs_and_targets()
    loss = lambda params: squared_error(net.apply({"params": params}, x), y)
    train = TrainState.create(apply_fn=net.apply, params=start, tx=_optimizer())

    def step(train: TrainState) -> TrainState:
        return train.apply_gradients(grads=jax.grad(loss)(train.params))

    run = jax.jit(step) if compiled else step
    train = run(train)
    _assert_speeds(start, jax.grad(loss)(start), train.params)
    losses = [float(loss(train.params))]
    for _ in range(3):
        train = run(train)
        losses.append(float(loss(train.params)))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]
    assert_same(train.params["layer"]["bias"], start["layer"]["bias"])


def _assert_speeds(start: Any, grads: Any, now: Any) -> None:
    """The frozen bias kept its bits; the others took one step at their own rate."""
    assert grads["layer"]["bias"].any()
    assert_same(now["layer"]["bias"], start["layer"]["bias"])
    kernel = start["layer"]["kernel"] - SLOW * grads["layer"]["kernel"]
    scale = start["scale"] - FAST * grads["scale"]
    assert jnp.allclose(now["layer"]["kernel"], kernel, rtol=1e-5, atol=1e-6)
    assert jnp.allclose(now["scale"], scale, rtol=1e-5, atol=1e-6)
    assert not jnp.allclose(now["scale"], start["scale"], rtol=1e-3)
    assert not jnp.allclose(now["layer"]["kernel"], start["layer"]["kernel"], rtol=1e-3)


def test_linen_boxes_pass_through_partition() -> None:
    boxed = nn.Partitioned(jnp.ones((2, 3)), names=("rows", None))
    params = {"layer": {"kernel": boxed, "bias": jnp.ones(3)}, "scale": jnp.ones(())}
    tx = _optimizer()
    updates: Any = tx.update(params, tx.init(params), params)[0]
    assert isinstance(updates["layer"]["kernel"], nn.Partitioned)
    assert (updates["layer"]["kernel"].value == -SLOW).all()
    assert not updates["layer"]["bias"].any()


@settings(max_examples=60)
@given(
    names=st.lists(
        st.from_regex(r"[a-d]{1,3}", fullmatch=True), min_size=1, unique=True
    ),
    rules=st.lists(
        st.sampled_from(["a", "b$", "^c", "d.", "aa|bb"]), min_size=1, unique=True
    ),
)
def test_labels_follow_the_rules_on_random_trees(
    names: list[str], rules: list[str]
) -> None:
    tree = {"top": {name: 0.0 for name in names}, "x": [1.0]}
    paths = ["top/" + name for name in sorted(names)] + ["x/0"]
    wanted = [
        next((rule for rule in rules if re.search(rule, path)), "rest")
        for path in paths
    ]
    idle = [r for r in rules if not any(re.search(r, path) for path in paths)]
    labels = ot.label_by_path({rule: rule for rule in rules}, default="rest")
    if idle:
        with pytest.raises(ValueError, match="match no leaf"):
            labels(tree)
    else:
        assert jax.tree.leaves(labels(tree)) == wanted
