"""Models that are trees and can be called: as parameters, and as choices of leaves."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optaxtricks as ot
from tests.cases import CASES, Case
from tests.problems import assert_same, gradients

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    """A tree with functions and strings among its leaves, as Equinox makes them."""

    activation: Any
    kind: Any
    frozen: Any
    weights: Any

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """It takes two arguments, and so is no predicate of one."""
        return self.activation(x @ self.weights["emb"] + y)


def _whole(weights: Any) -> Any:
    return Model(jax.nn.relu, "mlp", jnp.ones(2), weights)


def _arrays(weights: Any) -> Any:
    """What a filter for the trained arrays leaves of the model."""
    return Model(None, None, None, weights)


def _weights(model: Any) -> Any:
    return model.weights


def _filled(model: Model, value: Any) -> Any:
    return jax.tree.map(lambda _: value, model)


@each_case
def test_params_may_be_a_whole_model(case: Case) -> None:
    weights = case.params(jnp.float32)
    params, whole = _arrays(weights), _whole(weights)
    tx, grads = case.make(params), _arrays(gradients(weights))
    extra, state = case.extra_args(params), tx.init(params)
    want, kept = tx.update(grads, state, params, **extra)
    got, after = tx.update(grads, state, whole, **extra)
    # A ladder gives what is frozen an update of zeros.
    assert_same(_weights(got), _weights(want))
    assert_same(after, kept)


@pytest.mark.parametrize("make", [optax.adamw, ot.lion, ot.tiger])
@pytest.mark.usefixtures("standard_promotion")
def test_what_adamw_takes_is_taken(make: Any) -> None:
    params: Any = {"w": jnp.ones(3), "activation": jax.nn.relu, "frozen": jnp.ones(2)}
    grads: Any = {"w": jnp.ones(3), "activation": None, "frozen": None}
    tx = make(1e-3)
    updates, _ = tx.update(grads, tx.init(grads), params)
    assert updates["activation"] is updates["frozen"] is None
    assert (updates["w"] < 0).all()


MODEL = _whole({"emb": jnp.ones((3, 2)), "w": jnp.ones(2)})
PARAMS: Any = _arrays(MODEL.weights)


def _chosen(value: bool = True, rest: bool = False) -> Any:
    """Equinox's way to say which leaves: the model with a bool in every place."""
    tree = _filled(MODEL, rest)
    return dataclasses.replace(tree, weights={"emb": value, "w": rest})


def test_a_model_of_bools_is_a_selector_though_it_can_be_called() -> None:
    assert ot.select(PARAMS, _chosen()).weights == {"emb": True, "w": False}
    assert ot.select(MODEL, _chosen()).weights == {"emb": True, "w": False}
    with pytest.raises(ValueError, match=r"\(a tree of bools\) matches no leaf"):
        ot.select(PARAMS, _filled(MODEL, False))


@pytest.mark.parametrize(
    ("model", "tree"),
    [
        (
            ot.lion(0.5, mask=_chosen()),
            ot.lion(0.5, mask=lambda p: ot.select(p, "emb")),
        ),
        (
            ot.ladder(optax.sgd(0.5), side=_chosen()),
            ot.ladder(optax.sgd(0.5), side="emb"),
        ),
        (
            ot.scale_by_param_rms(rows=_chosen()),
            ot.scale_by_param_rms(rows="emb"),
        ),
        (
            ot.per_layer(ot.scale_by_param_rms(), _chosen()),
            ot.per_layer(ot.scale_by_param_rms(), "emb"),
        ),
    ],
)
def test_every_choice_may_be_a_model_of_bools(model: Any, tree: Any) -> None:
    grads = gradients(PARAMS)
    got, _ = model.update(grads, model.init(PARAMS), PARAMS)
    want, _ = tree.update(grads, tree.init(PARAMS), PARAMS)
    assert_same(got, want)


def test_a_model_of_strings_is_a_tree_of_labels() -> None:
    labels = dataclasses.replace(_filled(MODEL, "rest"), weights="weights")
    tx = ot.monitor_groups(labels)
    _, state = tx.update(PARAMS, tx.init(PARAMS))
    assert set(ot.metrics(state)) == set(ot.metrics(tx.init(PARAMS)))
    assert any("weights" in name for name in ot.metrics(state))
