"""SideLadder computes its equations, in NNX and in Linen, and never looks back."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.nn.ladders import (
    LAYERS,
    SIDE,
    linen_ladder,
    nnx_ladder,
    oracle,
    params_of,
    randomize,
    taps,
)
from tests.problems import assert_same

OPTIONS: dict[str, dict[str, Any]] = {
    "scalar": {},
    "vector": {"gate": "vector"},
    "sum": {"gate": "sum"},
    "constant": {"gate": "constant", "gate_value": 0.3},
    "side": {"merge": "side"},
    "state": {"merge": None},
    "dropped": {"keep": [1, 3], "gate": "vector"},
    "one": {"keep": (2,), "merge": "side"},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@each_option
def test_forward_is_the_equations(options: Any) -> None:
    ladder, x = randomize(nnx_ladder(**options)), taps()
    want = oracle(params_of(ladder), x, **options)
    got = nnx.jit(lambda ladder, x: ladder(x))(ladder, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ladder(x), want, rtol=1e-5, atol=1e-6)


@each_option
def test_linen_has_the_parameters_and_numbers_of_nnx(options: Any) -> None:
    ladder, model, x = randomize(nnx_ladder(**options)), linen_ladder(**options), taps()
    made: Any = model.init(jax.random.key(0), x)["params"]
    params = params_of(ladder)
    # The same names, shapes and dtypes.
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    got = jax.jit(model.apply)({"params": params}, x)
    assert_same(got, nnx.jit(lambda ladder, x: ladder(x))(ladder, x), ulps=8)
    assert ladder.side_width == model.side_width == SIDE


def test_gates_of_the_article() -> None:
    # sigma(0 / 0.1) = 0.5 and sigma(0.1 / 0.1) = 0.731059 of the side state stay.
    width = {"width": 1, "num_layers": 1, "reduction": 1, "merge": None}
    ladder = nnx_ladder(lambda width, layer, rngs: nnx.identity, **width)
    ladder.embed_down.kernel.set_value(jnp.ones((1, 1)))
    ladder.down_0.kernel.set_value(jnp.zeros((1, 1)))
    x = [jnp.ones(1), jnp.ones(1)]
    assert float(ladder(x)[0]) == 0.5
    ladder.gate.set_value(jnp.full((1,), 0.1))
    np.testing.assert_allclose(ladder(x), 0.731059, rtol=1e-6)
    hot = nnx_ladder(lambda width, layer, rngs: nnx.identity, temperature=1.0, **width)
    hot.embed_down.kernel.set_value(jnp.ones((1, 1)))
    hot.down_0.kernel.set_value(jnp.zeros((1, 1)))
    hot.gate.set_value(jnp.full((1,), 0.5))
    np.testing.assert_allclose(hot(x), 0.622459, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_fresh_gated_ladder_is_the_backbone(dtype: Any) -> None:
    x = taps(dtype)
    assert_same(nnx_ladder()(x), x[-1])
    model = linen_ladder()
    assert_same(model.apply(model.init(jax.random.key(0), x), x), x[-1])


def test_initial_parameters() -> None:
    width = {"width": 512, "reduction": 2, "gate": "vector"}
    ladder = nnx_ladder(lambda width, layer, rngs: nnx.identity, **width)
    model = linen_ladder(lambda width, layer: nn.Sequential([jnp.asarray]), **width)
    x = [jnp.ones(512)] * (LAYERS + 1)
    for params in params_of(ladder), model.init(jax.random.key(0), x)["params"]:
        assert params["gate"].shape == (LAYERS, 256)
        assert not params["gate"].any() and params["top_gate"] == 1
        for name in "embed_down", "down_0", "down_3", "up":
            kernel = np.asarray(params[name]["kernel"])
            error = 0.01 / np.sqrt(2 * kernel.size)
            assert abs(kernel.std() - 0.01) < 5 * error
            assert not params[name]["bias"].any()


@each_option
def test_taps_have_no_gradient_and_parts_have_one(options: Any) -> None:
    ladder, x = randomize(nnx_ladder(**options)), taps()
    layout, state = nnx.split(ladder)
    loss = lambda state, x: jnp.square(nnx.merge(layout, state)(x)).sum()
    grads, back = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, x)
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))
    assert not any(leaf.any() for leaf in jax.tree.leaves(back))
    model, params = linen_ladder(**options), params_of(ladder)
    loss = lambda x: jnp.square(model.apply({"params": params}, x)).sum()
    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(x)))


def test_at_first_the_top_gate_alone_has_a_gradient() -> None:
    ladder, x = nnx_ladder(), taps()
    grads = nnx.grad(lambda ladder: jnp.square(ladder(x)).sum())(ladder)
    moving = {path for path, g in nnx.to_flat_state(grads) if g.get_value().any()}
    assert moving == {("top_gate",)}


@pytest.mark.parametrize("gate", ["scalar", "vector", "sum"])
def test_bfloat16_taps(gate: str) -> None:
    ladder = randomize(nnx_ladder(gate=gate))
    wide, narrow = taps(), taps(jnp.bfloat16)
    got = nnx.jit(lambda ladder, x: ladder(x))(ladder, narrow)
    assert got.dtype == ladder.side_state(narrow).dtype == jnp.bfloat16
    want = oracle(params_of(ladder), wide, gate=gate)
    np.testing.assert_allclose(got.astype(jnp.float32), want, atol=0.1)
    model = linen_ladder(gate=gate)
    again = jax.jit(model.apply)({"params": params_of(ladder)}, narrow)
    assert_same(again, got, ulps=4)


def test_param_dtype_is_of_the_projections_but_gates_stay_wide() -> None:
    ladder, x = nnx_ladder(param_dtype=jnp.bfloat16), taps()
    model = linen_ladder(param_dtype=jnp.bfloat16)
    for params in params_of(ladder), model.init(jax.random.key(0), x)["params"]:
        assert (
            params["up"]["kernel"].dtype == params["down_1"]["bias"].dtype == "bfloat16"
        )
        assert params["gate"].dtype == params["top_gate"].dtype == "float32"
    assert ladder(x).dtype == jnp.float32


def test_vmap_over_examples_and_over_ladders() -> None:
    ladder, x = randomize(nnx_ladder()), taps()
    assert_same(jax.vmap(ladder)(x), ladder(x), ulps=8)
    model = linen_ladder()
    many = [params_of(randomize(nnx_ladder(), seed)) for seed in (1, 2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    apply = lambda params: model.apply({"params": params}, x)
    want = jnp.stack([jnp.asarray(apply(params)) for params in many])
    assert_same(jax.vmap(apply)(stacked), want, ulps=8)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_taps_split_over_devices(kind: Any) -> None:
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
    x, whole = taps(shape=(4, 5)), PartitionSpec()
    layout, state = nnx.split(randomize(nnx_ladder(gate="vector")))

    def features(state: Any, x: Any) -> Any:
        out = nnx.merge(layout, state)(x)
        return jnp.square(out).sum(), out

    step = jax.grad(features, has_aux=True)
    want = jax.jit(step)(state, x)
    with jax.set_mesh(mesh):
        place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
        there = place(state, whole), place(x, PartitionSpec("batch"))
        got = jax.jit(step)(*there)
    assert_same(got, want, ulps=32)
    assert got[1].sharding.is_equivalent_to(there[1][0].sharding, 3)


def test_arguments_go_to_every_block() -> None:
    ladder, x = randomize(nnx_ladder(merge=None)), taps()
    model, params = linen_ladder(merge=None), params_of(ladder)
    shift = jnp.full((2, 5, SIDE), 0.5)
    got = ladder(x, shift, weight=0.0)
    assert_same(model.apply({"params": params}, x, shift, weight=0.0), got, ulps=8)
    h = oracle(params, x[:1] + x[1:], merge=None)  # with the blocks' own layer
    assert not np.allclose(got, h, atol=0.1)
    # Without that layer, a rung halves (or so) what the shifts made before.
    mu = 1 / (1 + np.exp(-np.asarray(params["gate"]) / 0.1))
    still = ladder(x, jnp.zeros(()), weight=0.0)
    lasting = 0.0
    for share in mu:
        lasting = share * lasting + 0.5
    np.testing.assert_allclose(got - still, lasting, rtol=1e-4)


def test_dropout_in_side_blocks() -> None:
    ladder, x = randomize(nnx_ladder(merge="side")), taps()
    one, two, same = (ladder(x, rngs=nnx.Rngs(dropout=i)) for i in (1, 2, 1))
    assert (one != two).any() and (one == same).all() and (one != ladder(x)).any()
    model, variables = linen_ladder(merge="side"), {"params": params_of(ladder)}
    drop = lambda seed: model.apply(
        variables, x, dropped=True, rngs={"dropout": jax.random.key(seed)}
    )
    assert (drop(1) != drop(2)).any() and (drop(1) == drop(1)).all()


def test_side_state_and_merge_top_are_the_two_halves() -> None:
    ladder, x = randomize(nnx_ladder()), taps()
    model, variables = linen_ladder(), {"params": params_of(ladder)}
    state = ladder.side_state(x)
    assert state.shape == (2, 5, SIDE)
    assert_same(ladder.merge_top(state, x[-1]), ladder(x))
    # Behind a norm of the caller's, at another top.
    half, top = 0.5 * state, 2.0 * x[-1]
    got = ladder.merge_top(half, top)
    alpha, up = variables["params"]["top_gate"], variables["params"]["up"]
    want = alpha * top + (1 - alpha) * (
        half @ up["kernel"] + up["bias"].reshape(1, 1, -1)
    )
    assert_same(got, want, ulps=8)
    by_linen = model.apply(variables, x, method="side_state")
    assert_same(by_linen, state, ulps=8)
    assert_same(model.apply(variables, half, top, method="merge_top"), got, ulps=8)
    back = jax.grad(lambda top: ladder.merge_top(half, top).sum())(top)
    assert not back.any()


def test_a_dropped_layer_has_no_parameter_and_needs_no_tap() -> None:
    ladder, x = randomize(nnx_ladder(keep=[1, 3])), taps()
    names = set(params_of(ladder))
    assert names == {
        *("embed_down", "down_1", "down_3", "block_1", "block_3"),
        *("gate", "up", "top_gate"),
    }
    assert params_of(ladder)["gate"].shape == (2,)
    holes = [x[0], None, x[2], None, x[4]]
    assert_same(ladder(holes), ladder(x))
    model = linen_ladder(keep=[1, 3])
    made: Any = model.init(jax.random.key(0), holes)["params"]
    assert set(made) == names


def test_the_factory_is_told_the_width_and_the_layer() -> None:
    told: list[tuple[int, int]] = []

    def block(width: int, layer: int, rngs: nnx.Rngs) -> Any:
        told.append((width, layer))
        return nnx.identity

    nnx_ladder(block, keep=[0, 2])
    assert told == [(SIDE, 0), (SIDE, 2)]
