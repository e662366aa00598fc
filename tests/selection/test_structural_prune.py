"""Structural pruning: a brute-force oracle, the paper's walk, laws and containers."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot
from tests.problems import CONTAINERS, assert_same, pure

# T9
IMPORTANCE = np.array([[1.0, 4, 2, 3], [0, 1, 5, 1]])


def group(*args, **kwargs):
    return ot.PruneGroup(*args, **kwargs)


def prune(tree, importance, *groups, p=0.5):
    return ot.structural_prune(tree, importance, groups, keep_fraction=p)


# The rule, written with loops


def best(scores, count):
    """Ascending indices of the `count` highest scores; of equal ones the first."""
    ranked = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    return sorted(ranked[:count])


def channel_scores(members, importance):
    """Adds up entry by entry."""
    (size,) = {importance[name].shape[axis] for name, axis in members}
    scores = [0.0] * size
    for name, axis in members:
        for index in itertools.product(*map(range, importance[name].shape)):
            scores[index[axis]] += float(importance[name][index])
    return scores


def cut(array, axis, kept):
    return np.stack([np.moveaxis(array, axis, 0)[j] for j in kept], axis)


@st.composite
def problems(draw):
    """Shapes over a few named dimensions, small whole importances with many ties."""
    sizes = draw(st.lists(st.integers(2, 6), min_size=1, max_size=3))
    dims = st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=3)
    leaves = [list(range(len(sizes))), *draw(st.lists(dims, max_size=3))]
    seed, p = draw(st.integers(0, 99)), draw(st.sampled_from([0.3, 0.5, 0.75, 1.0]))
    return sizes, leaves, np.random.default_rng(seed), p


@given(problems())
def test_random_trees_agree_with_loops(problem):
    sizes, leaves, rng, p = problem
    shapes = [tuple(sizes[d] for d in dims) for dims in leaves]
    tree = {f"leaf{i}": rng.normal(size=s).astype("f4") for i, s in enumerate(shapes)}
    importance = {k: rng.integers(0, 3, x.shape).astype("f4") for k, x in tree.items()}
    groups, want = [], dict(tree)
    for d, size in enumerate(sizes):
        places = [(f"leaf{i}", a) for i, x in enumerate(leaves) for a in _at(x, d)]
        # One axis a pattern: a leaf with d twice comes in a second time, as ".*leaf0".
        names = [f"{'.*' * k}{name}$" for k, (name, _) in enumerate(places)]
        axes = [axis for _, axis in places]
        members = dict(zip(names, axes, strict=True))
        kept = best(channel_scores(places, importance), round(p * size))
        groups.append(group(members))
        for name, axis in places:
            want[name] = cut(want[name], axis, kept)
    assert_same(prune(tree, importance, *groups, p=p), want)


def _at(dims, wanted):
    return [axis for axis, d in enumerate(dims) if d == wanted]


# The rule, by hand


def test_the_embedding_of_the_paper():
    embed = np.arange(8).reshape(2, 4)
    got = prune({"embed": embed}, {"embed": IMPORTANCE}, group({"embed": 1}))
    np.testing.assert_array_equal(got["embed"], embed[:, [1, 2]])


@pytest.mark.parametrize(
    ("size", "p", "count"),
    [(5, 0.5, 2), (7, 0.5, 4), (8, 1 / 8, 1), (3, 0.5, 2), (9, 0.05 / 0.9 + 0.1, 1)],
)
def test_how_many_are_kept(size, p, count):
    scores = np.arange(size, dtype=np.float32)
    got = prune(scores, scores, group({"": 0}), p=p)
    np.testing.assert_array_equal(got, scores[size - count :])


def test_of_equal_scores_the_lower_index_wins():
    values = np.arange(6)
    got = prune(values, np.array([1.0, 2, 1, 2, 2, 1]), group({"": 0}), p=2 / 3)
    np.testing.assert_array_equal(got, [0, 1, 3, 4])
    # Many of them: sorts of few are stable by chance.
    tied = np.random.default_rng(0).integers(0, 3, 500)
    got = prune(np.arange(500), tied, group({"": 0}))
    np.testing.assert_array_equal(got, best(tied, 250))
    signed = prune(values, np.array([-0.0, 0, 0, -0.0, 0, 0]), group({"": 0}))
    np.testing.assert_array_equal(signed, [0, 1, 2])


def test_infinite_importance_ranks_first():
    got = prune(np.arange(4), np.array([5, np.inf, 7, 0]), group({"": 0}))
    np.testing.assert_array_equal(got, [1, 2])


def test_scores_are_summed_in_float64():
    # In float32 a one vanishes beside 2**24: a tie, which channel 0 would win.
    importance = np.array([[2**24, 2**24], [0, 1]], np.float32)
    got = prune(np.array([[10, 20], [30, 40]]), importance, group({"": 1}))
    np.testing.assert_array_equal(got, [[20], [40]])


def test_each_head_keeps_its_own_best():
    scores = np.array([9.0, 1, 8, 2, 0, 5, 0, 4])
    plain = prune(np.arange(8), scores, group({"": 0}), p=0.25)
    np.testing.assert_array_equal(plain, [0, 2])
    heads = prune(np.arange(8), scores, group({"": 0}, heads=2), p=0.25)
    np.testing.assert_array_equal(heads, [0, 5])
    # Rounded inside a head: 8 channels in 2 heads, 0.4 * 4 = 1.6, so 2 and 2.
    more = prune(np.arange(8), scores, group({"": 0}, heads=2), p=0.4)
    np.testing.assert_array_equal(more, [0, 2, 5, 7])


def test_followers_are_cut_without_a_say():
    tree = {"a": np.arange(4), "b": np.arange(4) * 10}
    importance = {"a": np.array([1.0, 2, 3, 4]), "b": np.array([9.0, 9, 0, 0])}
    together = prune(tree, importance, group({"a": 0, "b": 0}))
    np.testing.assert_array_equal(together["b"], [0, 10])
    led = prune(tree, importance, group({"a": 0}, followers={"b": 0}))
    np.testing.assert_array_equal(led["a"], [2, 3])
    np.testing.assert_array_equal(led["b"], [20, 30])
    # A follower needs no importance at all.
    assert_same(
        prune(tree, {"a": importance["a"]}, group({"a": 0}, followers={"b": 0})), led
    )


def test_a_pattern_takes_all_leaves_it_matches_and_axes_count_backwards():
    rng = np.random.default_rng(0)
    tree = {f"layer{i}": rng.uniform(size=(3, 4, 6)) for i in range(3)}
    got = prune(tree, tree, group({"layer": -1}))
    kept = best(channel_scores([(name, 2) for name in tree], tree), 3)
    for name, leaf in tree.items():
        np.testing.assert_array_equal(got[name], leaf[:, :, kept])


def test_groups_are_scored_before_any_cut():
    # Column 0 is best of the whole matrix, column 1 of what row 1 alone would leave.
    matrix = np.array([[5.0, 0], [0, 4], [0, 0], [0, 0]])
    importance = {"w": matrix, "rows": np.array([0.0, 9, 9, 0])}
    tree = {"w": np.arange(8).reshape(4, 2), "rows": np.arange(4)}
    rows, columns = group({"rows": 0}, followers={"^w": 0}), group({"^w": 1})
    at_once = prune(tree, importance, rows, columns)
    np.testing.assert_array_equal(at_once["w"], [[2], [4]])
    walked, left = [prune(t, importance, rows) for t in (tree, importance)]
    walked = prune(walked, left, columns)
    np.testing.assert_array_equal(walked["w"], [[3], [5]])


def test_keeping_everything_changes_nothing_and_leaves_outside_are_the_same_object():
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": np.ones(3), "none": None}
    importance = {"a": np.ones((2, 3)), "b": None, "none": None}
    got = prune(tree, importance, group({"a": 0}), group({"a": 1}), p=1)
    assert_same(got, tree)
    assert got["b"] is tree["b"] and got["none"] is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64, np.int8, bool])
@pytest.mark.parametrize("library", [np, jnp])
def test_dtype_and_library_are_kept(dtype, library):
    if library is jnp and dtype is np.float64:
        dtype = np.float32
    leaf = library.asarray(np.arange(4), dtype)
    importance = library.asarray(np.array([0, 1, 3, 2]), jnp.bfloat16)
    got = prune({"a": leaf}, {"a": importance}, group({"a": 0}))["a"]
    assert type(got) is type(leaf) and got.dtype == leaf.dtype
    np.testing.assert_array_equal(got, leaf[2:])


@pytest.mark.parametrize("make", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container(make):
    b, w = np.arange(4.0, dtype="f4"), np.arange(12.0, dtype="f4").reshape(3, 4)
    tree = make(jnp.asarray(b), jnp.asarray(w))
    groups = [group({"layer/b": 0, "layer/w": 1}), group({"layer/w": 0})]
    got = prune(tree, pure(tree), *groups, p=2 / 3)
    want = make(jnp.asarray(b[1:]), jnp.asarray(w[1:, 1:]))
    assert_same(got, want)


def test_shapes_without_numbers():
    tree, importance = {"a": jnp.ones((4, 3))}, {"a": np.ones((4, 3))}
    shapes = jax.eval_shape(lambda t: prune(t, importance, group({"a": 0})), tree)
    assert shapes["a"].shape == (2, 3)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x"), P(None, "x"), P("x", "y"), P()])
def test_sharded_leaves(kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    values = np.random.default_rng(0).uniform(size=(8, 16)).astype("f4")
    leaf = jax.device_put(values, NamedSharding(mesh, spec))
    for axis in (0, 1):
        one = group({"a": axis})
        got = prune({"a": leaf}, {"a": leaf}, one)["a"]
        want = prune({"a": values}, {"a": values}, one)["a"]
        np.testing.assert_array_equal(got, want)
        if kind is AxisType.Explicit:
            other = (*spec, None, None)[1 - axis]
            assert got.sharding.spec[1 - axis] == other
            assert got.sharding.spec[axis] is None


# The paper's walk


def paper_walk(params, importance, layers, p):
    """Semantics of "fisher-v2": kernels are (in, out), one carried set of indices."""

    def drop(scores):
        return best(scores, round(p * len(scores)))

    out = {"embed": None}
    kept = drop(importance["embed"].sum(0))
    out["embed"] = params["embed"][:, kept]
    for i in range(layers):
        name = f"layer{i}/"
        out[name + "norm"] = params[name + "norm"][kept]
        qkv = [f"{name}{x}" for x in "qkv"]
        product = np.ones_like(importance[qkv[0]])
        for x in qkv:
            product = product * importance[x]
        inputs, kept = kept, drop(product[kept].sum(0))
        for x in qkv:
            out[x] = params[x][inputs][:, kept]
        for x in (f"{name}o", f"{name}wi", f"{name}wo"):
            inputs, kept = kept, drop(importance[x][kept].sum(0))
            out[x] = params[x][inputs][:, kept]
    return out


def walk(layers):
    """The same as groups: what writes a stream leads, what reads it follows."""
    groups, writer = [], "^embed"
    for i in range(layers):
        name = f"^layer{i}/"
        reads = {f"{name}norm": 0, f"{name}[qkv]$": 0}
        groups.append(group({writer: -1}, followers=reads))
        groups.append(group({f"{name}[qkv]$": 1}, followers={f"{name}o$": 0}))
        groups.append(group({f"{name}o$": 1}, followers={f"{name}wi": 0}))
        groups.append(group({f"{name}wi": 1}, followers={f"{name}wo": 0}))
        writer = f"{name}wo"
    return [*groups, group({writer: -1})]


@pytest.mark.parametrize("seed", range(5))
def test_the_walk_of_the_paper_is_one_call_a_group(seed):
    rng, d, ff, layers = np.random.default_rng(seed), 8, 12, 2
    shapes = {"embed": (10, d)}
    for i in range(layers):
        shapes |= {f"layer{i}/{x}": (d, d) for x in "qkvo"} | {f"layer{i}/norm": (d,)}
        shapes |= {f"layer{i}/wi": (d, ff), f"layer{i}/wo": (ff, d)}
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    importance = {name: rng.gamma(0.5, size=shape) for name, shape in shapes.items()}
    want = paper_walk(params, importance, layers, p=0.25)
    for i in range(layers):
        q, k, v = [importance[f"layer{i}/{x}"] for x in "qkv"]
        importance |= {f"layer{i}/{x}": q * k * v for x in "qkv"}
    groups, got = walk(layers), params
    for one in groups:
        got, importance = [prune(t, importance, one, p=0.25) for t in (got, importance)]
    assert_same(got, want)


# Networks


class Block(nn.Module):
    width: int
    hidden: int
    head_size: int

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(
            2, qkv_features=2 * self.head_size, name="attention"
        )(y)
        y = nn.Dense(self.hidden, name="up")(nn.LayerNorm(name="norm2")(x))
        return x + nn.Dense(self.width, name="down")(nn.gelu(y))


class Transformer(nn.Module):
    width: int
    hidden: int
    head_size: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, self.width, name="embed")(tokens)
        for i in range(2):
            x = Block(self.width, self.hidden, self.head_size, name=f"block{i}")(x)
        return nn.LayerNorm(name="norm")(x)


STREAM = group(
    {
        "embed/embedding": 1,
        r"(query|key|value|up)/kernel": 0,
        r"(attention/out|down)/(kernel|bias)": -1,
        r"norm\d?/": 0,
    }
)
HEADS = [
    group(
        {
            rf"block{i}/attention/(query|key|value)/(kernel|bias)": -1,
            rf"block{i}/attention/out/kernel": 1,
        }
    )
    for i in range(2)
]
HIDDEN = [group({rf"block{i}/up/": -1, rf"block{i}/down/kernel": 0}) for i in range(2)]


def test_a_pruned_transformer_runs():
    tokens = jnp.arange(5)[None] % 7
    params = Transformer(8, 16, 4).init(jax.random.key(0), tokens)
    importance = jax.tree.map(jnp.square, params)
    groups = [STREAM, *HEADS, *HIDDEN]
    small = prune(params, importance, *groups)
    like = Transformer(4, 8, 2)
    want = jax.eval_shape(like.init, jax.random.key(0), tokens)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(lambda x: x.shape, want)
    out: Any = like.apply(small, tokens)
    assert out.shape == (1, 5, 4) and jnp.isfinite(out).all()
    # One decision for the whole stream: the embedding and each norm keep the same.
    number = lambda x: jnp.broadcast_to(jnp.arange(x.shape[-1]), x.shape)
    numbers = prune(jax.tree.map(number, params), importance, *groups)["params"]
    kept = numbers["embed"]["embedding"][0].tolist()
    for i in range(2):
        for name in ("norm", "norm2"):
            assert numbers[f"block{i}"][name]["scale"].tolist() == kept


def test_flat_heads_keep_their_count_in_nnx():
    class Attention(nnx.Module):
        def __init__(self, width, heads_width):
            rngs = nnx.Rngs(0)
            self.qkv = nnx.List(
                [nnx.Linear(width, heads_width, rngs=rngs) for _ in range(3)]
            )
            self.out = nnx.Linear(heads_width, width, rngs=rngs)

        def __call__(self, x):
            split = lambda y: y.reshape(*y.shape[:-1], 2, -1)
            q, k, v = [split(linear(x)) for linear in self.qkv]
            y = nnx.dot_product_attention(q, k, v)
            return self.out(y.reshape(*y.shape[:-2], -1))

    state = nnx.state(Attention(6, 8), nnx.Param)
    importance = pure(jax.tree.map(jnp.square, state))
    heads = group({"qkv/.*/(kernel|bias)": -1, "out/kernel": 0}, heads=2)
    small = prune(state, importance, heads)
    assert type(small) is nnx.State
    model = Attention(6, 4)
    nnx.update(model, small)
    out = model(jnp.ones((1, 3, 6)))
    assert out.shape == (1, 3, 6) and jnp.isfinite(out).all()
    # Two of each head of four.
    totals = sum(
        np.asarray(x["kernel"]).sum(0) + np.asarray(x["bias"])
        for x in importance["qkv"].values()
    ) + np.asarray(importance["out"]["kernel"]).sum(1)
    kept = best(totals[:4], 2) + [4 + j for j in best(totals[4:], 2)]
    want = state["out"]["kernel"][...][np.array(kept)]
    np.testing.assert_array_equal(small["out"]["kernel"][...], want)
