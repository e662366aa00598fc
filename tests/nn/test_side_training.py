"""Both training loops, end to end: the ladder learns, and the backbone costs no more
than its forward pass."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import optaxtricks as ot
from tests.nn.ladders import nnx_ladder, params_of
from tests.problems import assert_same, temp_bytes

WIDTH, LAYERS, REDUCTION, BATCH = 32, 6, 8, 256
SIZES = {"width": WIDTH, "num_layers": LAYERS, "reduction": REDUCTION}
FORWARD = LAYERS * 2 * 2 * BATCH * WIDTH * 4 * WIDTH
standard = pytest.mark.usefixtures("standard_promotion")


class LinenNet(nn.Module):
    """A residual backbone, a head, and perhaps a ladder between them."""

    laddered: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        taps = [x]
        for i in range(LAYERS):
            h = nn.tanh(nn.Dense(4 * WIDTH, name=f"wide_{i}")(taps[-1]))
            taps.append(taps[-1] + nn.Dense(WIDTH, name=f"narrow_{i}")(h))
        block = lambda width, layer: nn.Sequential([nn.Dense(width), nn.tanh])
        side = ot.nn.linen.SideLadder(block, merge="side", name="side", **SIZES)
        top = side(taps) if self.laddered else taps[-1]
        return nn.Dense(1, name="head")(top)


class NnxNet(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: nnx.Rngs):
        for i in range(LAYERS):
            setattr(self, f"wide_{i}", nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs))
            setattr(self, f"narrow_{i}", nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs))
        block = lambda width, layer, rngs: nnx.Sequential(
            nnx.Linear(width, width, rngs=rngs), nnx.tanh
        )
        self.side = ot.nn.SideLadder(block, merge="side", rngs=rngs, **SIZES)
        self.head = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        taps = [x]
        for i in range(LAYERS):
            h = nnx.tanh(getattr(self, f"wide_{i}")(taps[-1]))
            taps.append(taps[-1] + getattr(self, f"narrow_{i}")(h))
        return self.head(self.side(taps))


def _data() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, WIDTH))
    y = np.sin(x[:, :1]) + x[:, 1:2]
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def _squared(predicted: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(predicted - y).mean()


def _linen_loss(params: Any, x: jax.Array, y: jax.Array, laddered: bool = True) -> Any:
    out: Any = LinenNet(laddered).apply({"params": params}, x)
    return _squared(out, y)


def _linen_step(train: TrainState, x: jax.Array, y: jax.Array) -> Any:
    differ = ot.side_value_and_grad(_linen_loss, side="^side")
    value, grads = differ(train.params, x, y)
    return train.apply_gradients(grads=grads), value


def _full_step(train: TrainState, x: jax.Array, y: jax.Array) -> Any:
    value, grads = jax.value_and_grad(_linen_loss)(train.params, x, y, laddered=False)
    return train.apply_gradients(grads=grads), value


def _nnx_step(model: NnxNet, optimizer: Any, only: Any, *data: jax.Array) -> jax.Array:
    loss = lambda model, x, y: _squared(model(x), y)
    differ = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, only))
    value, grads = differ(model, *data)
    optimizer.update(model, grads)
    return value


def _train(params: Any, tx: Any) -> TrainState:
    return TrainState.create(apply_fn=None, params=params, tx=tx)


def _frozen(params: Any) -> Any:
    return ot.split(params, "^side")[1]


@standard
def test_both_loops_train_the_ladder_alone_and_alike() -> None:
    model, data = NnxNet(nnx.Rngs(0)), _data()
    start = jax.tree.map(jnp.copy, params_of(model))
    only = ot.nn.side_filter(model, "^side")
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=only)
    nnx_step = nnx.jit(_nnx_step, static_argnums=2, donate_argnums=(0, 1))
    # Linen numbers the layers of a Sequential otherwise.
    linen = jax.tree.map(jnp.copy, _renamed(start))
    train = _train(linen, ot.ladder(optax.adam(0.01), side="^side"))
    linen_step = jax.jit(_linen_step, donate_argnums=0)
    losses = []
    for _ in range(60):
        value = nnx_step(model, optimizer, only, *data)
        train, same = linen_step(train, *data)
        losses.append((float(value), float(same)))
    np.testing.assert_allclose(*np.transpose(losses), rtol=2e-3)
    assert losses[-1][0] < 0.7 * losses[0][0]
    after = params_of(model)
    assert_same(_frozen(after), _frozen(start))
    assert_same(_frozen(train.params), _frozen(_renamed(start)))
    states = optimizer.opt_state, train.opt_state
    moments = 2 * _size(after["side"])
    for state in states:
        assert moments < _size(state) < moments + 5


def _renamed(params: Any) -> Any:
    side = dict(params["side"])
    for i in range(LAYERS):
        side[f"block_{i}"] = {"layers_0": side[f"block_{i}"]["layers"][0]}
    return {**params, "side": side}


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@standard
def test_no_step_has_a_backward_pass_of_the_backbone() -> None:
    data, tx = _data(), ot.ladder(optax.adam(0.01), side="^side")
    model = NnxNet(nnx.Rngs(0))
    params = _renamed(params_of(model))
    full = _compiled(_full_step, _train(params, optax.adam(0.01)), *data)
    linen = _compiled(_linen_step, _train(params, tx), *data)

    only = ot.nn.side_filter(model, "^side")
    optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=only)
    layout, state = nnx.split((model, optimizer))

    def pure_step(state: Any, *data: jax.Array) -> Any:
        model, optimizer = nnx.merge(layout, state)
        value = _nnx_step(model, optimizer, only, *data)
        return nnx.state((model, optimizer)), value

    for ladder in linen, _compiled(pure_step, state, *data):
        flops = ladder.cost_analysis()["flops"]
        assert FORWARD < flops < 1.3 * FORWARD
        assert flops < 0.5 * full.cost_analysis()["flops"]
        assert temp_bytes(ladder) < 0.4 * temp_bytes(full)


def _compiled(step: Any, state: Any, *data: jax.Array) -> Any:
    return jax.jit(step, donate_argnums=0).lower(state, *data).compile()


def test_side_filter_is_true_for_side_parameters_only() -> None:
    ladder, rngs = nnx_ladder(), nnx.Rngs(0)
    ladder.norm = nnx.BatchNorm(2, rngs=rngs)
    model = nnx.Dict(body=nnx.Linear(2, 2, rngs=rngs), side=ladder)
    only = ot.nn.side_filter(model, "^side")
    _, chosen, _ = nnx.split(model, only, ...)
    paths = {path for path, _ in nnx.to_flat_state(chosen)}
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    assert paths == {path for path, _ in flat if path[0] == "side"}
    again = ot.nn.side_filter(model, lambda path, leaf: path.startswith("side/"))
    assert only == again and hash(only) == hash(again)
    assert only != ot.nn.side_filter(model, "^body")
    with pytest.raises(ValueError, match=r"side 'head' matches no leaf.*'body/bias'"):
        ot.nn.side_filter(model, "head")
    with pytest.raises(ValueError, match=r"side '.' matches every leaf.*'body/bias'"):
        ot.nn.side_filter(model, ".")
