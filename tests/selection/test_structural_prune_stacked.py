"""Structural pruning of stacks: that of the layers in a list, wherever they are."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks
from tests.problems import assert_same

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

LAYERS = 3
# Of one layer, by name; channels: model 6, hidden 8, heads 2 of size 4.
SHAPES = {"up": (6, 8), "down": (8, 6), "query": (6, 2, 4), "scale": (6,)}


def group(*args, **kwargs):
    return ot.PruneGroup(*args, **kwargs)


def prune(tree, importance, *groups, p=0.5, **how):
    return ot.structural_prune(tree, importance, groups, keep_fraction=p, **how)


def drawn(seed, tied=False):
    """A list of layers, an embedding and a head, in whole numbers or not."""
    rng = np.random.default_rng(seed)
    value = (
        (lambda s: rng.integers(0, 3, s)) if tied else (lambda s: rng.gamma(1, 1, s))
    )
    layers = [
        {name: np.float32(value(shape)) for name, shape in SHAPES.items()}
        for _ in range(LAYERS)
    ]
    return {
        "embed": np.float32(value((9, 6))),
        "layers": layers,
        "head": np.float32(value((6, 5))),
    }


def stack(tree, axes):
    """The same with each leaf of the layers in one array."""
    put = lambda name: np.stack([x[name] for x in tree["layers"]], axes[name])
    return {**tree, "layers": {name: put(name) for name in SHAPES}}


LAYER_AXES = {
    "first": dict.fromkeys(SHAPES, 0),
    "second": dict.fromkeys(SHAPES, 1),
    "mixed": {"up": 1, "down": 2, "query": 3, "scale": 0},
}
each_layout = pytest.mark.parametrize("axes", LAYER_AXES.values(), ids=LAYER_AXES)


def said(axes):
    return {f"^layers/{name}$": axis for name, axis in axes.items()}


# Axes of one layer: of a stack, `*` stands for nothing, of a list for the number.
HIDDEN = {"up": 1}, {"down": 0}
HEADS = {"query": -1}, {}


def own(which, number=None, **options):
    """A group of the layers' leaves: of all in a stack, or of one in a list."""
    at = "^layers/" if number is None else f"^layers/{number}/"
    members, followers = [
        {f"{at}{name}$": axis for name, axis in part.items()} for part in which
    ]
    return group(members, followers=followers, **options)


STREAM = group(
    {"^embed": 1, "^layers.*/(up|query)": 0, "^layers.*/down": -1},
    followers={"^layers.*/scale": 0, "^head": 0},
)


@each_layout
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("library", [np, jnp])
def test_a_group_of_stacks_is_a_group_for_each_layer(axes, tied, library):
    tree, importance = drawn(0), drawn(1, tied)
    numbers = range(LAYERS)
    apart = [own(which, i) for which in (HIDDEN, HEADS) for i in numbers]
    want = stack(prune(tree, importance, *apart), axes)
    as_library = jax.tree.map(library.asarray, stack(tree, axes))
    got = prune(
        as_library,
        stack(importance, axes),
        own(HIDDEN),
        own(HEADS),
        stacked=said(axes),
    )
    assert_same(jax.tree.map(np.asarray, got), want)
    for leaf in jax.tree.leaves(got["layers"]):
        assert isinstance(leaf, np.ndarray if library is np else jax.Array)
    # The layers did not all decide alike.
    kept = prune(
        {"layers": [np.arange(8) for _ in numbers]},
        {"layers": [x["up"].sum(0) for x in importance["layers"]]},
        *[group({f"/{i}$": 0}) for i in numbers],
    )["layers"]
    assert len({tuple(row) for row in kept}) > 1


@each_layout
def test_flat_heads_keep_their_number_in_each_layer(axes):
    tree, importance = drawn(2), drawn(3)
    apart = [own(HIDDEN, i, heads=2) for i in range(LAYERS)]
    want = stack(prune(tree, importance, *apart), axes)
    stacks = [stack(x, axes) for x in (tree, importance)]
    got = prune(*stacks, own(HIDDEN, heads=2), stacked=said(axes))
    assert_same(got, want)
    assert prune(*stacks, own(HIDDEN), stacked=said(axes))["layers"]["up"].shape == (
        got["layers"]["up"].shape
    )


@each_layout
@pytest.mark.parametrize("tied", [False, True])
def test_with_an_unstacked_leaf_one_decision_serves_all_layers(axes, tied):
    tree, importance = drawn(4), drawn(5, tied)
    want = stack(prune(tree, importance, STREAM), axes)
    stacks = [stack(x, axes) for x in (tree, importance)]
    got = prune(*stacks, STREAM, stacked=said(axes))
    assert_same(got, want)
    # A follower without a say is enough.
    led = group({"^layers.*/up": 0}, followers={"^head": 0})
    assert_same(
        prune(*stacks, led, stacked=said(axes)),
        stack(prune(tree, importance, led), axes),
    )


@each_layout
def test_a_leaf_in_groups_of_both_kinds(axes):
    tree, importance = drawn(6), drawn(7)
    apart = [own(HIDDEN, i) for i in range(LAYERS)]
    want = stack(prune(tree, importance, STREAM, *apart, p=2 / 3), axes)
    stacks = [stack(x, axes) for x in (tree, importance)]
    for groups in ([STREAM, own(HIDDEN)], [own(HIDDEN), STREAM]):
        got = prune(*stacks, *groups, p=2 / 3, stacked=said(axes))
        assert_same(got, want)


def test_one_decision_serves_stacks_of_different_depth():
    """As of the encoder and the decoder that share an embedding."""
    rng = np.random.default_rng(0)
    deep, flat = rng.gamma(1, 1, (4, 6)), rng.gamma(1, 1, (2, 6))
    embed = rng.gamma(1, 1, (3, 6))
    tree = {"embed": embed, "encoder": deep, "decoder": flat}
    stream = group({"": -1})
    got = prune(tree, tree, stream, stacked="coder$")
    listed = {"embed": embed, "encoder": list(deep), "decoder": list(flat)}
    want = prune(listed, listed, stream)
    assert_same(
        got, jax.tree.map(np.stack, want, is_leaf=lambda x: isinstance(x, list))
    )


def test_sums_are_those_of_the_layers_to_the_last_bit():
    """Scores whose order the rounding of a sum decides."""
    rng = np.random.default_rng(0)
    layers = [np.exp(rng.normal(0, 9, (50, 7, 40))) for _ in range(5)]
    number = np.broadcast_to(np.arange(40), (50, 7, 40))
    groups = [group({f"^{i}$": -1}) for i in range(5)]
    want = prune([number] * 5, layers, *groups)
    for axis in range(4):
        trees = [np.stack(x, axis) for x in ([number] * 5, layers)]
        got = prune(*trees, group({"": -1}), stacked={"": axis})
        np.testing.assert_array_equal(got, np.stack(want, axis))


def test_without_stacked_axes_are_those_of_the_leaf():
    leaf = np.random.default_rng(0).gamma(1, 1, (4, 6))
    whole = prune(leaf, leaf, group({"": 1}))
    kept = np.sort(np.argsort(-leaf.sum(0), kind="stable")[:3])
    np.testing.assert_array_equal(whole, leaf[:, kept])
    assert prune(leaf, leaf, group({"": 0})).shape == (2, 6)  # drops layers
    assert prune(leaf, leaf, group({"": 0}), stacked="").shape == (4, 3)


def test_keeping_everything_and_stacks_outside_of_groups():
    tree = stack(drawn(0), LAYER_AXES["mixed"])
    got = prune(tree, tree, own(HIDDEN), p=1, stacked=said(LAYER_AXES["mixed"]))
    assert_same(got, tree)
    assert got["layers"]["query"] is tree["layers"]["query"]


@pytest.mark.parametrize("library", [np, jnp])
@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (2, 4)])
def test_few_layers(library, shape):
    leaf = library.zeros(shape)
    assert prune(leaf, leaf, group({"": 0}), stacked="").shape == (shape[0], 2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.int8, bool])
@pytest.mark.parametrize("library", [np, jnp])
def test_dtype_and_library_are_kept(dtype, library):
    leaf = library.asarray(np.arange(8).reshape(2, 4), dtype)
    importance = library.asarray(np.array([[0, 1, 3, 2], [5, 1, 3, 9]]), jnp.bfloat16)
    got = prune({"a": leaf}, {"a": importance}, group({"a": 0}), stacked="a")["a"]
    assert type(got) is type(leaf) and got.dtype == leaf.dtype
    np.testing.assert_array_equal(got, np.asarray(leaf)[[[0], [1]], [[2, 3], [0, 3]]])


def test_shapes_without_numbers():
    tree, importance = {"a": jnp.ones((4, 3))}, {"a": np.ones((4, 3))}
    cut = lambda t: prune(t, importance, group({"a": 0}), stacked={"a": 1})
    assert jax.eval_shape(cut, tree)["a"].shape == (2, 3)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "spec", [P("x"), P(None, "x"), P("x", "y"), P("y", None, "x"), P()], ids=str
)
def test_sharded_stacks(kind, layer, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    values = np.random.default_rng(0).uniform(size=(8, 8, 16)).astype("f4")
    leaf = jax.device_put(values, NamedSharding(mesh, spec))
    for axis in (0, 1):
        run = lambda x, axis=axis: prune(x, x, group({"": axis}), stacked={"": layer})
        got, whole = run(leaf), axis + (axis >= layer)
        np.testing.assert_array_equal(got, run(values))
        if kind is AxisType.Explicit:
            names = [*spec, None, None, None][:3]
            names[whole] = None
            assert list(got.sharding.spec) == names


# A network


class Block(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm(name="norm")(x)
        y = nn.gelu(nn.Dense(self.hidden, name="up")(y))
        return x + nn.Dense(x.shape[-1], name="down")(y), None


class Scanned(nn.Module):
    width: int
    hidden: int
    axis: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, self.width, name="embed")(tokens)
        layers = nn.scan(
            Block,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=4,
        )(self.hidden, name="layers")
        return nn.LayerNorm(name="norm")(layers(x, None)[0])


@pytest.mark.parametrize("axis", [0, 1])
def test_a_pruned_scanned_transformer_runs(axis):
    tokens = jnp.arange(5)[None] % 7
    params = Scanned(8, 16, axis).init(jax.random.key(0), tokens)
    importance = jax.tree.map(jnp.square, params)
    stream = group(
        {"embedding": 1, "layers/up/kernel": 0, "layers/down/(kernel|bias)": -1},
        followers={r"norm/(scale|bias)": 0},
    )
    hidden = group({"layers/up/": -1}, followers={"layers/down/kernel": 0})
    stacked = {"layers/": axis}
    small = prune(params, importance, stream, hidden, stacked=stacked)
    like = Scanned(4, 8, axis)
    want = jax.eval_shape(like.init, jax.random.key(0), tokens)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(lambda x: x.shape, want)
    out: Any = like.apply(small, tokens)
    assert out.shape == (1, 5, 4) and jnp.isfinite(out).all()


def test_an_nnx_stack_keeps_its_variables():
    @nnx.vmap(in_axes=0)
    def layers(key):
        return nnx.Linear(4, 6, rngs=nnx.Rngs(key))

    state = nnx.state(layers(jax.random.split(jax.random.key(0), 3)), nnx.Param)
    importance = nnx.to_pure_dict(jax.tree.map(jnp.square, state))
    small = prune(state, importance, group({"kernel": 1, "bias": 0}), stacked="")
    assert type(small) is nnx.State and isinstance(small["kernel"], nnx.Param)
    assert small["kernel"][...].shape == (3, 4, 3)
    assert small["bias"][...].shape == (3, 3)


# Errors

TREE = {"a": np.ones((3, 4, 6)), "b": np.ones((2, 6)), "c": np.ones(6)}


@pytest.mark.parametrize(
    ("members", "stacked", "message"),
    [
        (
            {"a": 2},
            "a",
            r"axis 2 is out of range for the layers at 'a' of shape \(4, 6",
        ),
        ({"a": -3}, {"a": 1}, r"axis -3 is .* the layers at 'a' of shape \(3, 6\)"),
        (
            {"a": 1, "b": 0},
            "a|b",
            r"groups\[0\] has stacks of different numbers of layers: 'a': 3; 'b': 2",
        ),
        ({"a": 0, "c": 0}, "a", "different sizes: 'a' axis 0: 4; 'c' axis 0: 6"),
        ({"a": 0}, "nothing", "stacked 'nothing' matches no leaf"),
        ({"a": 0}, {"c": 1}, r"stacked: the leaf at 'c' has shape \(6,\) and so no"),
        ({"a": 1, "^a": -1}, "a", "axis 1 of the leaf at 'a' is named twice"),
    ],
)
def test_bad_stacks(members, stacked, message):
    with pytest.raises(ValueError, match=message):
        prune(TREE, TREE, group(members), stacked=stacked)
