"""Readings are found in every state they may be in, under names of their own."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optaxtricks as ot
from tests.problems import NnxNet, inputs_and_targets, squared_error

PARAMS = {"emb": jnp.ones((4, 2)), "w": jnp.full((3,), 2.0)}
LABELS = ot.label_by_path({"^emb": "table"}, default="rest")
READINGS = {"norm", "rms", "max", "zero_fraction", "active_row_fraction"}


def _watch(name: str = "updates") -> optax.GradientTransformationExtraArgs:
    return ot.monitor_groups("all", name=name)


def _after_one(tx: Any) -> dict[str, jax.Array]:
    state = tx.init(PARAMS)
    return ot.metrics(tx.update(PARAMS, state, PARAMS)[1])


def test_names_are_monitor_label_reading() -> None:
    tx = optax.chain(optax.scale(-0.5), ot.monitor_groups(LABELS, name="steps"))
    found = _after_one(tx)
    groups = {f"steps/{label}/{r}" for label in ("table", "rest") for r in READINGS}
    assert set(found) == groups
    assert float(found["steps/rest/max"]) == 1.0
    assert all(x.shape == () and x.dtype == jnp.float32 for x in found.values())


def test_nothing_to_read_is_an_empty_dict() -> None:
    assert ot.metrics(optax.adam(1e-3).init(PARAMS)) == {}
    assert ot.metrics(_watch().init({})) == {}
    assert ot.metrics(()) == {}


def test_readings_before_the_first_update_are_zero() -> None:
    found = ot.metrics(_watch().init(PARAMS))
    assert {float(x) for x in found.values()} == {0.0}


@pytest.mark.usefixtures("standard_promotion")
def test_wrappers_of_optax_hide_nothing() -> None:
    want = float(_after_one(_watch())["updates/all/rms"])
    multi = optax.MultiSteps(optax.chain(_watch(), optax.sgd(0.1)), 1)
    finite = optax.apply_if_finite(optax.chain(_watch(), optax.sgd(0.1)), 2)
    masked = optax.masked(_watch(), {"emb": True, "w": True})
    make = lambda learning_rate: optax.chain(_watch(), optax.sgd(learning_rate))
    injected = optax.inject_hyperparams(make)(learning_rate=0.25)
    for tx in (multi, finite, masked, injected):
        assert float(_after_one(tx)["updates/all/rms"]) == want
    assert float(_after_one(injected)["hyperparams/learning_rate"]) == 0.25


@pytest.mark.usefixtures("standard_promotion")
def test_parts_of_a_partition_keep_apart() -> None:
    sgd = optax.inject_hyperparams(optax.sgd)
    tx = optax.partition(
        {
            "slow": optax.chain(ot.monitor_groups("table"), sgd(0.5)),
            "fast": optax.chain(ot.monitor_groups("rest"), sgd(2.0)),
        },
        {"emb": "slow", "w": "fast"},
    )
    found = _after_one(tx)
    assert float(found["updates/table/max"]) == 1.0
    assert float(found["updates/rest/max"]) == 2.0
    assert float(found["hyperparams/slow/learning_rate"]) == 0.5
    assert float(found["hyperparams/fast/learning_rate"]) == 2.0


@pytest.mark.usefixtures("standard_promotion")
def test_a_name_that_comes_again_is_numbered_or_refused() -> None:
    sgd = optax.inject_hyperparams(optax.sgd)
    found = _after_one(optax.chain(sgd(0.5), sgd(0.25)))
    assert float(found["hyperparams/learning_rate"]) == 0.5
    assert float(found["hyperparams/learning_rate#2"]) == 0.25
    message = r"two monitors report 'updates/all/\w+'; give each its own name, as in "
    with pytest.raises(ValueError, match=message + r"monitor_groups\(labels, name="):
        _after_one(optax.chain(_watch(), _watch()))
    both = _after_one(optax.chain(_watch("a"), optax.scale(2.0), _watch("b")))
    assert float(both["b/all/rms"]) == 2 * float(both["a/all/rms"])


def test_it_compiles_with_the_step_and_runs_in_a_scan() -> None:
    tx = optax.chain(_watch(), optax.scale(-0.1))

    def step(state: Any, scale: jax.Array) -> Any:
        grads = jax.tree.map(lambda p: p * scale, PARAMS)
        _, state = tx.update(grads, state)
        return state, ot.metrics(state)

    scales = jnp.asarray([1.0, 2.0, 0.0])
    _, history = jax.jit(lambda s: jax.lax.scan(step, s, scales))(tx.init(PARAMS))
    assert history["updates/all/max"].tolist() == [2.0, 4.0, 0.0]
    assert history["updates/all/zero_fraction"].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.usefixtures("standard_promotion")
def test_the_state_of_an_nnx_optimizer() -> None:
    model = NnxNet()
    labels = ot.label_by_path({"^layer": "layer"}, default="rest")
    inner = optax.inject_hyperparams(optax.sgd)(0.5)
    tx = optax.chain(ot.monitor_groups(labels), inner)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x, y = inputs_and_targets()
    grads = nnx.grad(lambda model: squared_error(model(x), y))(model)
    optimizer.update(model, grads)
    found = ot.metrics(optimizer.opt_state)
    plain = nnx.to_pure_dict(grads)
    norm = optax.tree.norm(plain["layer"])
    assert float(found["updates/layer/norm"]) == pytest.approx(float(norm), rel=1e-6)
    assert float(found["hyperparams/learning_rate"]) == 0.5
    assert all(isinstance(value, jax.Array) for value in found.values())
