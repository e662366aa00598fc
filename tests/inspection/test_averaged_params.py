"""The average in the parameters' place: by path, in their dtype, and a copy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import optaxtricks as ot
from tests.problems import applied, assert_same, gradients, small_tree, values

pytestmark = pytest.mark.usefixtures("standard_promotion")


def _trained(tx: Any, params: Any, steps: int = 3) -> tuple[Any, Any]:
    state = tx.init(params)
    for step in range(steps):
        updates, state = tx.update(gradients(params, seed=step), state, params)
        params = applied(params, updates)
    return params, state


def _sgd(decay: float = 0.5) -> optax.GradientTransformation:
    return optax.chain(optax.sgd(0.25), ot.ema_params(decay))


WRAPPED = {
    "chain": lambda: _sgd(),
    "nested chain": lambda: optax.chain(optax.identity(), _sgd()),
    "MultiSteps": lambda: optax.MultiSteps(_sgd(), 1).gradient_transformation(),
    "at_window_end": lambda: ot.at_window_end(_sgd(), accumulate_steps=1),
    "inject": lambda: optax.inject_hyperparams(lambda rate: _sgd())(rate=1.0),
    "partition": lambda: optax.partition(
        {"a": _sgd(), "b": _sgd()}, ot.label_by_path({"^emb": "a"}, default="b")
    ),
}


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_leaf_gets_its_average_however_deep_it_lies(
    how: str, compiled: bool
) -> None:
    tx = WRAPPED[how]()
    params, state = _trained(tx, small_tree())
    _, plain = _trained(_sgd(), small_tree())
    read: Any = jax.jit(ot.averaged_params) if compiled else ot.averaged_params
    assert_same(read(params, state), optax.tree.get(plain, "ema"), ulps=2)


LEAVING_OUT = {
    "masked": lambda side: optax.masked(_sgd(), lambda tree: ot.select(tree, side)),
    "ladder": lambda side: ot.ladder(_sgd(), side=side),
    "partition": lambda side: optax.partition(
        {"a": _sgd(), "b": optax.set_to_zero()},
        ot.label_by_path({side: "a"}, default="b"),
    ),
}


@pytest.mark.parametrize("how", LEAVING_OUT)
def test_a_leaf_without_an_average_stays(how: str) -> None:
    params, state = _trained(LEAVING_OUT[how]("^layer"), small_tree())
    got = ot.averaged_params(params, state)
    assert_same({**got, "layer": None}, {**params, "layer": None})
    _, plain = _trained(_sgd(), small_tree())
    assert_same(got["layer"], optax.tree.get(plain, "ema")["layer"], ulps=2)


def test_it_has_the_dtype_of_the_parameter() -> None:
    params, state = _trained(_sgd(0.9), small_tree(jnp.bfloat16))
    average = optax.tree.get(state, "ema")
    assert average["emb"].dtype == jnp.float32
    got = ot.averaged_params(params, state)
    assert_same(got, jax.tree.map(lambda x: x.astype(jnp.bfloat16), average))


def test_donation_of_both_does_not_reach_it() -> None:
    tx, start = (
        optax.masked(_sgd(), {"emb": True, "w": False}),
        values((64, 8), jnp.float32, 0),
    )
    params, state = _trained(tx, {"emb": start, "w": start})
    got = ot.averaged_params(params, state)
    kept = jax.tree.map(np.array, got)
    buffers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))}
    assert not buffers & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(got)}
    step = jax.jit(
        lambda *both: jax.tree.map(lambda x: x + 1, both), donate_argnums=(0, 1)
    )
    step(params, state)
    assert_same(got, kept)


def test_other_containers_match_by_path() -> None:
    params, state = _trained(_sgd(), {"a": jnp.ones(2), "b": jnp.zeros(2)})
    other = nnx.State({"b": nnx.Param(params["b"]), "a": nnx.Param(params["a"])})
    got = ot.averaged_params(other, state)
    assert jax.tree.structure(got) == jax.tree.structure(other)
    average = optax.tree.get(state, "ema")
    for name in "ab":
        assert_same(got[name][...], average[name])


def test_holes_and_functions_stay() -> None:
    params = {"w": jnp.ones(2), "hole": None, "masked": optax.MaskedNode()}
    tx = _sgd()
    state = tx.init(params)
    whole = {**params, "act": jax.nn.relu}
    got = ot.averaged_params(whole, state)
    assert got["act"] is jax.nn.relu
    assert_same({k: v for k, v in got.items() if k != "act"}, params)


def test_what_is_refused() -> None:
    params = small_tree()
    with pytest.raises(ValueError, match="opt_state has no average: ema_params is not"):
        ot.averaged_params(params, optax.sgd(1.0).init(params))
    two = optax.chain(ot.ema_params(0.5), ot.ema_params(0.9)).init(params)
    with pytest.raises(ValueError, match=r"two averages of 'emb', 'layer/b'"):
        ot.averaged_params(params, two)
    state = _sgd().init(params)
    with pytest.raises(ValueError, match="does not have: 'emb'"):
        ot.averaged_params({k: v for k, v in params.items() if k != "emb"}, state)
    with pytest.raises(ValueError, match=r"of 'scale' has shape \(\), and the"):
        ot.averaged_params({**params, "scale": jnp.ones(3)}, state)


def test_in_a_train_state() -> None:
    net = linen.Dense(3)
    params = net.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    train = TrainState.create(apply_fn=net.apply, params=params, tx=_sgd(0.0))
    train = train.apply_gradients(grads=gradients(params))
    assert_same(ot.averaged_params(train.params, train.opt_state), train.params)


class _Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.side = nnx.Linear(4, 4, rngs=rngs, param_dtype=jnp.bfloat16)
        self.body = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.side(self.body(x)))


def _optimizer(model: Any, only: Any = nnx.Param) -> nnx.Optimizer:
    optimizer = nnx.Optimizer(model, _sgd(), wrt=only)
    for step in range(2):
        grads = gradients(nnx.state(model, only), seed=step)
        optimizer.update(model, grads)
    return optimizer


def _held(model: Any) -> Any:
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def test_in_an_nnx_model_and_back() -> None:
    model = _Net()
    optimizer = _optimizer(model)
    before = _held(model)
    want = jax.tree.map(
        np.array,
        nnx.to_pure_dict(
            ot.averaged_params(nnx.state(model, nnx.Param), optimizer.opt_state)
        ),
    )
    with ot.nn.averaged(model, optimizer):
        assert_same(_held(model), want)
        assert model.side.kernel.dtype == jnp.bfloat16
        with ot.nn.averaged(model, optimizer):
            assert_same(_held(model), want)
        assert_same(_held(model), want)
        model(jnp.ones((5, 4)))  # its running mean moves, and stays moved
        mean = np.array(model.norm.mean[...])
    assert_same(_held(model), before)
    assert (np.array(model.norm.mean[...]) == mean).all() and mean.any()
    assert any(
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (want, before)), strict=True)
    )


def test_back_after_an_error_too() -> None:
    model = _Net()
    optimizer = _optimizer(model)
    before = _held(model)
    with pytest.raises(RuntimeError), ot.nn.averaged(model, optimizer):
        raise RuntimeError
    assert_same(_held(model), before)


def test_what_wrt_leaves_out_stays_as_it_is() -> None:
    model = _Net()
    only = ot.nn.side_filter(model, "^side")
    optimizer = _optimizer(model, only)
    before = _held(model)
    with ot.nn.averaged(model, optimizer):
        inside = _held(model)
    assert_same(inside["body"], before["body"])
    assert (inside["side"]["kernel"] != before["side"]["kernel"]).any()
    assert_same(_held(model), before)


def test_a_donated_model_inside_and_training_afterwards() -> None:
    model = _Net()
    optimizer = _optimizer(model)
    before = _held(model)
    with ot.nn.averaged(model, optimizer):
        nnx.jit(lambda m: m(jnp.ones((5, 4))), donate_argnums=0)(model)
    assert_same(_held(model), before)
    optimizer.update(model, gradients(nnx.state(model, nnx.Param)))


def test_no_optimizer_is_an_error() -> None:
    with pytest.raises(TypeError, match=r"optimizer must be an nnx\.Optimizer, got 3"):
        with ot.nn.averaged(_Net(), 3):  # pyrefly: ignore
            pass
