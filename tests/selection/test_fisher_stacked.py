"""Fisher information of stacks: each layer is clipped to the norm by itself."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks
from tests.selection.fisher_model import assert_close, values

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

WIDTH, LAYERS, EXAMPLES = 4, 3, 10
X = values(EXAMPLES, WIDTH, seed=2)
BATCHES = [X[:5], X[5:]]
# Layers of very different scale, so that one norm for all would clip otherwise.
PARAMS = {
    "embed": values(WIDTH, WIDTH, seed=1),
    "layers": [
        {"kernel": values(WIDTH, WIDTH, seed=i) * 10.0**-i, "bias": values(WIDTH)}
        for i in range(LAYERS)
    ],
}
AXES = {"kernel": 1, "bias": 0}
CLIPPED = {"per": "batch", "clip_norm": 0.3}


def layer(h, params):
    return h + jnp.tanh(h @ params["kernel"] + params["bias"])


def unrolled(params, x):
    """A Python loop over a list of layers."""
    h = x @ params["embed"]
    for one in params["layers"]:
        h = layer(h, one)
    return jax.nn.log_softmax(h)[0]


def scanned(axes):
    """The same over stacks, by `jax.lax.scan`."""

    def log_likelihood(params, x):
        stacks = {k: jnp.moveaxis(v, axes[k], 0) for k, v in params["layers"].items()}
        step = lambda h, params: (layer(h, params), None)
        h, _ = jax.lax.scan(step, x @ params["embed"], stacks)
        return jax.nn.log_softmax(h)[0]

    return log_likelihood


def stack(tree, axes):
    put = lambda name: np.stack([x[name] for x in tree["layers"]], axes[name])
    return {**tree, "layers": {name: put(name) for name in axes}}


def said(axes):
    return {f"^layers/{name}$": axis for name, axis in axes.items()}


@functools.cache
def unrolled_scores(power):
    return ot.fisher_information(unrolled, PARAMS, BATCHES, **CLIPPED, power=power)


@pytest.mark.parametrize("axes", [{"kernel": 0, "bias": 0}, AXES, {**AXES, "bias": 1}])
@pytest.mark.parametrize("power", [1, 2])
def test_a_stack_has_the_scores_of_the_unrolled_model(axes, power):
    how = {**CLIPPED, "power": power}
    want = unrolled_scores(power)
    stacks = stack(PARAMS, axes)
    run = lambda **more: ot.fisher_information(
        scanned(axes), stacks, BATCHES, **how, **more
    )
    assert_close(run(stacked=said(axes)), stack(want, axes))
    # Clipped as one leaf they would be others.
    assert not np.allclose(
        run()["layers"]["kernel"], stack(want, axes)["layers"]["kernel"]
    )


def test_a_selector_says_axis_zero_and_only_scored_leaves_matter():
    axes = {"kernel": 0, "bias": 0}
    stacks = stack(PARAMS, axes)
    run = lambda **how: ot.fisher_information(
        scanned(axes), stacks, BATCHES, **CLIPPED, **how
    )
    assert_close(run(stacked="^layers"), run(stacked=said(axes)), rtol=0)
    # The bias has no such axis, but no score either.
    got = run(where="kernel|embed", stacked={"kernel": 0, "bias": 7})
    assert got["layers"]["bias"] is None
    assert_close(got["layers"]["kernel"], run(stacked="^layers")["layers"]["kernel"])


def test_bfloat16_parameters_are_clipped_in_float32():
    axes = {"kernel": 0, "bias": 0}
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), stack(PARAMS, axes))
    one = lambda params, x: (params["layers"]["kernel"] * jnp.bfloat16(3)).sum()
    how = {**CLIPPED, "stacked": "^layers", "where": "kernel"}
    got = ot.fisher_information(one, narrow, BATCHES, **how)["layers"]["kernel"]
    # A gradient of threes: 12 is the norm of a layer of 16.
    want = (3 * np.float32(0.3) / np.float32(12 + 1e-6)) ** 2
    np.testing.assert_allclose(got, np.full((LAYERS, WIDTH, WIDTH), want), rtol=1e-6)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P()], ids=str)
def test_sharded_stacks(kind, spec):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(kind,))
    kernels = values(4, 8, 8, seed=5)
    there = jax.device_put(kernels, NamedSharding(mesh, spec))
    one = lambda kernels, x: (jnp.tanh(kernels) * jnp.square(kernels)).sum() * x[0]
    run = lambda kernels: ot.fisher_information(
        one, kernels, BATCHES, **CLIPPED, stacked=""
    )
    assert_close(run(there), run(kernels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stacked": "^layers"}, "stacked needs clip_norm"),
        ({"stacked": "^layers", "per": "batch"}, "stacked needs clip_norm"),
        ({"stacked": "^layers", "clip_norm": 1.0}, "clip_norm needs per='batch'"),
        ({**CLIPPED, "stacked": "no"}, "stacked 'no' matches no leaf. Paths: 'embed'"),
        ({**CLIPPED, "stacked": {"bias": 2}}, r"'layers/bias' has shape \(3, 4\) and"),
    ],
)
def test_bad_stacks(arguments, message):
    axes = {"kernel": 0, "bias": 0}
    with pytest.raises(ValueError, match=message):
        ot.fisher_information(scanned(axes), stack(PARAMS, axes), BATCHES, **arguments)
