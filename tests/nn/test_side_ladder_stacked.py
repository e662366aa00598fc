"""Taps of a scanned backbone: in one array, or behind the embedding in one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.nn.ladders import (
    LAYERS,
    WIDTH,
    linen_ladder,
    nnx_ladder,
    params_of,
    randomize,
    taps,
)
from tests.problems import assert_same

FORMS: dict[str, Any] = {
    "one array": jnp.stack,
    "one array of NumPy": lambda x: np.stack([np.asarray(tap) for tap in x]),
    "pair": lambda x: (x[0], jnp.stack(x[1:])),
    "pair of NumPy in a list": lambda x: [np.asarray(x[0]), np.stack(x[1:])],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gated": {},
    "side": {"merge": "side", "gate": "vector"},
    "state": {"merge": None},
    "dropped": {"keep": [0, 2]},
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_option = pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            options, id=name, marks=[] if name == "gated" else pytest.mark.slow
        )
        for name, options in OPTIONS.items()
    ],
)


def both(**options: Any) -> list[Any]:
    """A function of taps for a ladder of NNX, and for the same one of Linen."""
    ladder = randomize(nnx_ladder(**options))
    layout, state = nnx.split(ladder)
    model, variables = linen_ladder(**options), {"params": params_of(ladder)}
    return [
        lambda x: nnx.merge(layout, state)(x),
        lambda x: model.apply(variables, x),
    ]


@each_form
@each_option
def test_every_form_of_taps_gives_the_result_of_the_list(
    options: Any, form: Any
) -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        x = taps(dtype)
        for ladder in both(**options):
            assert_same(ladder(form(x)), ladder(x))
            assert_same(jax.jit(ladder)(form(x)), jax.jit(ladder)(x))


@each_form
def test_the_top_is_the_tap_of_the_last_layer(form: Any) -> None:
    x = taps()
    assert_same(nnx_ladder(keep=[1])(form(x)), x[-1])
    model = linen_ladder()
    variables = model.init(jax.random.key(0), form(x))
    assert_same(model.apply(variables, form(x)), x[-1])


@pytest.mark.parametrize("form", [FORMS["one array"], FORMS["pair"]])
@each_option
def test_no_form_has_a_gradient(options: Any, form: Any) -> None:
    x = form(taps())
    for ladder in both(**options):
        loss = lambda x, ladder=ladder: jnp.square(ladder(x)).sum()
        back = jax.jit(jax.grad(loss))(x)
        assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, x)
        assert not any(leaf.any() for leaf in jax.tree.leaves(back))


@each_form
def test_side_state_takes_every_form(form: Any) -> None:
    ladder, x = randomize(nnx_ladder()), taps()
    assert_same(ladder.side_state(form(x)), ladder.side_state(x))
    model, variables = linen_ladder(), {"params": params_of(ladder)}
    state = lambda x: model.apply(variables, x, method="side_state")
    assert_same(state(form(x)), state(x))


@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_one_layer_in_every_form(shape: Any) -> None:
    """Two entries in each: of one shape, in one array, and of two shapes."""
    x = taps(shape=shape)[:2]
    for ladder in both(num_layers=1):
        want = ladder(x)
        for form in (*FORMS.values(), tuple):
            assert_same(ladder(form(x)), want)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("form", [FORMS["one array"], FORMS["pair"]])
def test_stacked_taps_split_over_devices(form: Any, kind: Any) -> None:
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
    x = taps(shape=(4, 5))
    ladder, params = linen_ladder(), params_of(randomize(nnx_ladder()))
    run = jax.jit(lambda params, x: ladder.apply({"params": params}, x))
    want = run(params, x)
    with jax.set_mesh(mesh):
        place = lambda x, *spec: jax.device_put(
            x, NamedSharding(mesh, PartitionSpec(*spec))
        )
        there = jax.tree.map(
            lambda x: place(x, "batch") if x.ndim == 3 else place(x, None, "batch"),
            form(x),
        )
        got: Any = run(place(params), there)
    assert_same(got, want, ulps=8)
    assert got.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("batch")), 3)


def scanned(params: Any, x: jax.Array) -> Any:
    """A backbone that gives its embedding, and its layers in one array."""
    layer = lambda h, kernel: (h + jnp.tanh(h @ kernel),) * 2
    return x, jax.lax.scan(layer, x, params)[1]


def test_a_ladder_gets_from_a_cache_what_the_backbone_gives() -> None:
    rng = np.random.default_rng(0)
    kernels = jnp.asarray(rng.normal(size=(LAYERS, WIDTH, WIDTH)), jnp.float32)
    # As many examples in a batch as there are layers.
    data = rng.normal(size=(3 * LAYERS, 5, WIDTH)).astype("f4")
    cache = ot.nn.cache_taps(
        scanned, data, params=kernels, batch_size=LAYERS, stacked={"^1$": 0}
    )
    batch = slice(LAYERS, 2 * LAYERS)
    given = jax.jit(scanned)(kernels, data[batch])
    for ladder in both():
        assert_same(ladder(cache[batch]), ladder(given))


def test_bad_forms() -> None:
    x = taps()
    for ladder in both():
        with pytest.raises(ValueError, match=r"over 4 layers needs 5 taps, .* got 4"):
            ladder(jnp.stack(x[1:]))
        message = (
            r"4 layers needs their taps in an array of 4 .* got shape \(3, 2, 5, 12"
        )
        with pytest.raises(ValueError, match=message):
            ladder((x[0], jnp.stack(x[2:])))
        with pytest.raises(ValueError, match="in one array need an axis that counts"):
            ladder(jnp.ones(()))
        with pytest.raises(ValueError, match=r"over 4 layers needs 5 taps, .* got 2"):
            ladder((jnp.stack(x[1:]), x[0]))
        with pytest.raises(ValueError, match=r"layer 0 .*\(2, 5, 12\), got \(5, 2, 12"):
            ladder((x[0], jnp.stack(x[1:]).swapaxes(1, 2)))
