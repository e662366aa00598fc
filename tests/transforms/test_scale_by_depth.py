"""Rates by depth: published conventions, stacks, towers, holes, and clear errors."""

import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks
from tests.collectives import exchanges
from tests.problems import assert_same, values

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)


def run(tx: Any, grads: Any) -> Any:
    """The first update of a gradient tree."""
    return tx.update(grads, tx.init(grads))[0]


def factors(tx: Any, paths: Any) -> dict[str, float]:
    """What an update of 1 becomes at each path, in float64."""
    with jax.enable_x64(True):
        ones = {path: jnp.ones((), jnp.float64) for path in paths}
        got = run(tx, ones)
        return {path: float(got[path]) for path in paths}


# Twelve layers in each convention: the exponent of the decay at each path, by hand.
BLOCKS = [f"blocks/{i}/attn/qkv/kernel" for i in range(12)]
BLOCK_EXPONENTS = dict(zip(BLOCKS, range(12, 0, -1), strict=True))
EMBEDDED = ["cls_token", "pos_embed", "patch_embed/proj/kernel"]
VIT = {**dict.fromkeys(EMBEDDED, 13), **BLOCK_EXPONENTS}
STEM = "^(cls_token|mask_token|pos_embed|patch_embed)"
HEAD = {"head/kernel": 0, "head/bias": 0}
LAYERS = [f"encoder/layer_{i}/output/dense/kernel" for i in range(12)]
CONVENTIONS: dict[str, Any] = {
    # get_num_layer_for_vit: 0 for the tokens and the patches, i + 1 for block i, 13 for
    # the rest, the shared relative position bias with it; decay ** (13 - number).
    "beit": (
        {"layers": r"^blocks/(\d+)", "first": STEM},
        {
            **VIT,
            **HEAD,
            "mask_token": 13,
            "rel_pos_bias/table": 0,
            "norm/scale": 0,
            "fc_norm/scale": 0,
        },
    ),
    # group_matcher of its ViT: the stem, 12 blocks, the norm in the group before it,
    # what is left last: 14 groups; decay ** (13 - group).
    "timm": (
        {"layers": r"^blocks/(\d+)", "first": STEM, "top": "^norm"},
        {**VIT, **HEAD, "norm/scale": 1, "norm/bias": 1, "fc_norm/scale": 0},
    ),
    # The same without a head: nothing is left, so 13 groups; decay ** (12 - group).
    "timm without a head": (
        {"layers": r"^blocks/(\d+)", "first": STEM, "top": "^norm", "gap": 0},
        {path: n - 1 for path, n in VIT.items()} | {"norm/scale": 0},
    ),
    # _get_layer_lrs: depth 0 for embeddings and their projection, i + 1 for layer i, 14
    # for the task's layers; decay ** (14 - depth).
    "electra": (
        {
            "layers": r"encoder/layer_(\d+)/",
            "first": "^embeddings(_project)?/",
            "last": "^task_specific/",
            "gap": 2,
        },
        {
            "embeddings/word_embeddings": 14,
            "embeddings_project/kernel": 14,
            **dict(zip(LAYERS, range(13, 1, -1), strict=True)),
            "task_specific/classify/dense/kernel": 0,
        },
    ),
    # get_train_op: rate ** (11 - i) for layer i, nothing for the rest.
    "xlnet": (
        {"layers": r"^transformer/layer_(\d+)/", "gap": 0},
        {
            "transformer/word_embedding/lookup_table": 0,
            **{f"transformer/layer_{i}/ff/kernel": 11 - i for i in range(12)},
            "transformer/mask_emb": 0,
        },
    ),
}


@pytest.mark.parametrize("decay", [0.65, 0.9])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_published_convention(name: str, decay: float) -> None:
    arguments, exponents = CONVENTIONS[name]
    got = factors(ot.scale_by_depth(decay, **arguments), exponents)
    assert got == {path: decay**n for path, n in exponents.items()}


def test_the_numbers_of_a_model_of_twelve_layers() -> None:
    arguments, exponents = CONVENTIONS["beit"]
    got = factors(ot.scale_by_depth(0.75, **arguments), exponents)
    assert got["head/kernel"] == 1
    assert got["blocks/11/attn/qkv/kernel"] == 0.75
    assert got["blocks/0/attn/qkv/kernel"] == pytest.approx(0.03167635202407837)
    assert got["cls_token"] == pytest.approx(0.023757264018058777)


@pytest.mark.parametrize("path", ["layers/{}", "layers_{}/w", "model/layers/{}/mlp/w"])
def test_the_default_pattern_finds_lists_and_names(path: str) -> None:
    paths = [path.format(i) for i in range(11)]
    want = {p: 0.5 ** (11 - i) for i, p in enumerate(paths)}
    got = factors(ot.scale_by_depth(0.5), [*paths, "head"])
    assert got == {**want, "head": 1.0}


def test_the_outermost_number_counts() -> None:
    paths = ["layers/0/layers/0/w", "layers/0/layers/4/w", "layers/1/layers/2/w"]
    got = factors(ot.scale_by_depth(0.5), paths)
    assert list(got.values()) == [0.25, 0.25, 0.5]


def test_a_layer_without_a_leaf_of_its_own_is_still_a_layer() -> None:
    got = factors(ot.scale_by_depth(0.5), ["layers/0", "layers/2", "layers/4"])
    assert list(got.values()) == [0.5**5, 0.5**3, 0.5]


@pytest.mark.parametrize("gap", [0, 1, 2, 0.5])
def test_gap_is_the_distance_of_the_top_layer(gap: float) -> None:
    tx = ot.scale_by_depth(0.5, first="emb", top="norm", gap=gap)
    got = factors(tx, ["emb", "layers/0", "layers/1", "norm", "head"])
    want = [0.5 ** (gap + 2), 0.5 ** (gap + 1), 0.5**gap, 0.5**gap, 1.0]
    assert list(got.values()) == pytest.approx(want, rel=1e-15)


def test_first_and_last_go_before_numbers() -> None:
    paths = ["emb/layers_0/w", "layers/0/w", "layers/1/w", "head/layers_7/w"]
    got = factors(ot.scale_by_depth(0.5, first="^emb", last="^head"), paths)
    assert list(got.values()) == [0.125, 0.25, 0.5, 1.0]


def test_every_kind_of_selector() -> None:
    paths = ["emb", "layers/0", "norm", "head"]
    want = {"emb": 0.25, "layers/0": 0.5, "norm": 0.5, "head": 1.0}
    is_norm = dict.fromkeys(paths, False) | {"norm": True}
    for first in ("emb", re.compile("^emb$"), lambda path, leaf: path == "emb"):
        layers = re.compile(r"layers.(\d)")
        tx = ot.scale_by_depth(0.5, layers=layers, first=first, top=is_norm)
        assert factors(tx, paths) == want


def layered(dtype: Any = jnp.float32, axis: int = 0) -> Any:
    """Twelve layers in a stack, between embeddings and a head."""
    bias, kernel = values((12, 5), dtype, 1), values((12, 3, 5), dtype, 2)
    return {
        "embed": values((7, 5), dtype, 3),
        "head": values((5,), dtype, 4),
        "layers": {"bias": bias, "kernel": jnp.moveaxis(kernel, 0, axis)},
    }


def unrolled(tree: Any, axis: int = 0) -> Any:
    """The same with a list of layers."""
    bias, kernel = (
        tree["layers"]["bias"],
        jnp.moveaxis(tree["layers"]["kernel"], axis, 0),
    )
    parts = [{"bias": bias[i], "kernel": kernel[i]} for i in range(12)]
    return {**tree, "layers": parts}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_stack_equals_the_list_of_its_layers(dtype: str, axis: int) -> None:
    stacked = {"bias": 0, "^layers/kernel": axis - 3}
    with jax.enable_x64(dtype == "float64"):
        grads = layered(jnp.dtype(dtype), axis)
        got = run(ot.scale_by_depth(0.8, stacked=stacked, first="embed"), grads)
        want = run(ot.scale_by_depth(0.8, first="embed"), unrolled(grads, axis))
        assert_same(unrolled(got, axis), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_product_is_taken_in_float32(dtype: str) -> None:
    grads = layered(jnp.dtype(dtype))
    got = run(ot.scale_by_depth(0.8, stacked="^layers/", first="embed"), grads)
    powers = 0.8 ** np.arange(12.0, 0, -1)
    wanted = {"bias": powers[:, None], "kernel": powers[:, None, None]}
    pairs = [(got["layers"][k], grads["layers"][k], f) for k, f in wanted.items()]
    pairs += [(got["embed"], grads["embed"], np.asarray(0.8**13))]
    for new, old, factor in pairs:
        factor = factor.astype(np.float32).astype(np.float64)
        want = (np.asarray(old).astype(np.float64) * factor).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(new), want.astype(dtype))
    assert_same(got["head"], grads["head"])


def test_the_head_and_a_decay_of_one_pass_the_bits() -> None:
    odd = jnp.asarray([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32)
    grads = {"layers": [odd, odd], "head": odd}
    assert run(ot.scale_by_depth(0.5), grads)["head"] is odd
    for decay in (1, 1.0, np.float32(1)):
        got = run(ot.scale_by_depth(decay), grads)
        assert got["layers"][0] is odd and got["layers"][1] is odd


def test_towers_of_one_length_count_each_on_its_own() -> None:
    towers = [f"{t}/layers/{i}" for t in ("decoder", "encoder") for i in range(3)]
    got = factors(ot.scale_by_depth(0.5, first="emb"), ["emb", *towers])
    assert list(got.values()) == [0.0625, *[0.125, 0.25, 0.5] * 2]
    grads = {"layers": jnp.ones((2, 3)), "more": {"layers": [1.0, 1.0]}}
    got = run(ot.scale_by_depth(0.5, stacked="^layers"), grads)
    assert got["layers"][:, 0].tolist() == [0.25, 0.5]
    assert [float(x) for x in got["more"]["layers"]] == [0.25, 0.5]


def test_towers_of_different_length_have_a_transformation_each() -> None:
    paths = [*[f"decoder/layers/{i}" for i in range(2)]]
    paths += [f"encoder/layers/{i}" for i in range(3)]
    message = r"towers differ .*: {'decoder/': 2, 'encoder/': 3}. Use one transform"
    with pytest.raises(ValueError, match=message):
        factors(ot.scale_by_depth(0.5), paths)
    each = [
        ot.scale_by_depth(0.5, layers=rf"^{tower}/layers/(\d+)", first=f"^{tower}/emb")
        for tower in ("encoder", "decoder")
    ]
    paths += ["decoder/emb", "encoder/emb", "head"]
    got = factors(optax.chain(*each), paths)
    want = [0.25, 0.5, 0.125, 0.25, 0.5, 0.125, 0.0625, 1.0]
    assert got == dict(zip(paths, want, strict=True))
    stacks = {"decoder": jnp.ones((2, 1)), "encoder": jnp.ones((3, 1))}
    with pytest.raises(ValueError, match=r"towers differ .*'decoder': 2, 'encoder': 3"):
        run(ot.scale_by_depth(0.5, stacked="coder"), stacks)
    each = [ot.scale_by_depth(0.5, stacked=tower) for tower in stacks]
    got = run(optax.chain(*each), stacks)
    assert got["decoder"].ravel().tolist() == [0.25, 0.5]
    assert got["encoder"].ravel().tolist() == [0.125, 0.25, 0.5]


def test_a_list_below_a_stack_is_a_case_for_vectors() -> None:
    grads = {"dense": [jnp.ones(1), jnp.ones(1)], "layers": jnp.ones((3, 1))}
    rates = 0.5 ** np.arange(5, 0, -1)
    by_path = {"^dense/0": rates[0], "^dense/1": rates[1], "^layers": rates[2:]}
    got = run(ot.scale_by_path(by_path, stacked="^layers"), grads)
    flat = [*got["dense"][0], *got["dense"][1], *got["layers"].ravel()]
    assert [float(x) for x in flat] == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]


def test_layers_that_optax_takes_out_still_count() -> None:
    params: Any = {
        "embed": jnp.ones(2),
        "layers": [{"b": jnp.ones(2), "w": jnp.ones((2, 2))} for _ in range(4)],
        "head": {"layers_9": jnp.ones(2)},
    }
    depth = lambda: ot.scale_by_depth(0.5, first="embed", last="^head")
    want = run(depth(), params)
    frozen = jax.tree.map(lambda _: True, params)
    frozen["layers"][2] = frozen["layers"][3] = {"b": False, "w": False}
    frozen["head"] = {"layers_9": False}
    got = run(optax.masked(depth(), frozen), params)
    assert_same(got["embed"], want["embed"])
    assert_same(got["layers"][:2], want["layers"][:2])
    assert_same(got["layers"][2:], params["layers"][2:])
    labels = jax.tree.map(lambda keep: "low" if keep else "high", frozen)
    parts: Any = {"low": depth(), "high": optax.chain(depth(), optax.scale(3.0))}
    got = run(optax.partition(parts, labels), params)
    assert_same(got["layers"][:2], want["layers"][:2])
    assert_same(got["layers"][2:], jax.tree.map(lambda x: 3 * x, want["layers"][2:]))
    only = jax.tree.map(lambda _: False, params) | {"embed": True}
    assert_same(run(optax.masked(depth(), only), params)["embed"], want["embed"])
    alone: Any = {"layers": [None, None, params["layers"][2], None]}
    assert_same(run(ot.scale_by_depth(0.5), alone)["layers"][2], want["layers"][2])


def test_a_stack_that_optax_takes_out_cannot_be_counted() -> None:
    tx = ot.scale_by_depth(0.5, stacked="^layers", first="embed")
    grads = {"embed": jnp.ones(2), "layers": optax.MaskedNode()}
    with pytest.raises(
        ValueError, match=r"none that is not masked out\. Paths: 'embed'"
    ):
        tx.init(grads)


def test_a_table_with_a_row_sparse_gradient() -> None:
    rows = ot.RowSparse(jnp.array([2, 0]), jnp.array([[1.0], [5.0]]), 3)
    tx = ot.scale_by_depth(0.5, first="^emb$")
    params = {"emb": jnp.ones((3, 1)), "layers": [jnp.ones(1)]}
    updates, _ = tx.update({"emb": rows, "layers": [jnp.ones(1)]}, tx.init(params))
    assert updates["emb"].indices.tolist() == [2, 0]
    assert updates["emb"].to_dense().tolist() == [[1.25], [0.0], [0.25]]
    assert updates["layers"][0].tolist() == [0.5]
    wrong = ot.scale_by_depth(0.5, stacked="^emb$")
    with pytest.raises(ValueError, match="update at 'emb' is a RowSparse, whose rows"):
        wrong.update({"emb": rows}, wrong.init({"emb": jnp.ones((3, 1))}))


class Deep(nnx.Module):
    """A list of layers in NNX, whose parameters are Variables."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(5, 3, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(3, 2, rngs=rngs)


def test_it_trains_an_nnx_model() -> None:
    model = Deep()
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    tx = optax.chain(optax.sgd(1.0), ot.scale_by_depth(0.5, first="^embed"))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, before))
    moved: Any = jax.tree.map(jnp.subtract, before, nnx.state(model, nnx.Param))
    sizes = [moved["embed"]["embedding"][...]]
    sizes += [moved["layers"][i]["bias"][...] for i in range(3)]
    sizes += [moved["head"]["kernel"][...]]
    for size, want in zip(sizes, [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], strict=True):
        np.testing.assert_allclose(size, want, rtol=1e-5)


def test_it_runs_in_a_scan_and_has_no_state() -> None:
    tx = ot.scale_by_depth(0.8, stacked="^layers/", first="embed")
    grads = layered()
    assert tx.init(grads) == optax.EmptyState()
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), grads)
    step = lambda state, grads: tx.update(grads, state)[::-1]
    _, scanned = jax.jit(lambda g: jax.lax.scan(step, tx.init(grads), g))(many)
    mapped = jax.vmap(lambda grads: run(tx, grads))(many)
    want = run(tx, grads)
    for got in scanned, mapped:
        assert_same(jax.tree.map(lambda leaf: leaf[0], got), want)


def test_decay_and_gap_may_be_traced() -> None:
    make = lambda decay, gap: ot.scale_by_depth(
        decay, stacked="^layers/", first="embed", gap=gap
    )
    grads = layered()
    tx: Any = optax.inject_hyperparams(make)(decay=0.8, gap=2)
    state = tx.init(grads)
    updates, _ = jax.jit(tx.update)(grads, state)
    assert_same(updates, run(make(0.8, 2), grads), ulps=8)
    lower = state._replace(hyperparams={"decay": jnp.float32(0.5), "gap": jnp.int32(1)})
    assert_same(jax.jit(tx.update)(grads, lower)[0], run(make(0.5, 1), grads), ulps=8)
    decays = jnp.asarray([0.5, 0.9, 1.0])
    batch = jax.vmap(lambda decay: run(make(decay, 1), grads))(decays)
    for i, decay in enumerate(decays):
        got = jax.tree.map(lambda leaf, i=i: leaf[i], batch)
        assert_same(got, run(make(float(decay), 1), grads), ulps=8)
    injected: Any = optax.inject_hyperparams(ot.scale_by_depth)(0.8, stacked="^layers/")
    assert set(injected.init(grads).hyperparams) == {"decay", "gap"}
    by_rank = lambda path, leaf: leaf.ndim == 3
    static = optax.inject_hyperparams(ot.scale_by_depth, static_args=("stacked",))
    assert_same(
        run(static(0.5, stacked=by_rank), {"layers": grads["layers"]["kernel"]}),
        run(ot.scale_by_depth(0.5, stacked=""), {"layers": grads["layers"]["kernel"]}),
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axes", [("x", "y", None), (None, "x", "y"), ("y", None, "x")])
def test_no_communication_whatever_axis_is_divided(axes: Any, kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    grads = {"layers": values((4, 4, 4), jnp.float32, 1)}
    there = jax.device_put(grads, NamedSharding(mesh, PartitionSpec(*axes)))
    for axis in (0, 1):
        tx = ot.scale_by_depth(0.8, stacked={"": axis})
        compiled = jax.jit(tx.update).lower(there, tx.init(there)).compile()
        assert exchanges(compiled.as_text()) == []
        got = compiled(there, tx.init(there))[0]
        assert_same(got, run(tx, grads))
        assert got["layers"].sharding.is_equivalent_to(there["layers"].sharding, 3)


BAD_BUILDS: list[Any] = [
    ({"decay": 0.0}, ValueError, r"decay must lie in \(0, 1\], got 0.0"),
    ({"decay": 1.5}, ValueError, r"decay must lie in \(0, 1\]"),
    ({"decay": lambda step: 0.5}, TypeError, "decay must be a number, got <function"),
    ({"gap": -1}, ValueError, "gap must be at least 0 and finite, got -1"),
    ({"gap": "1"}, TypeError, "gap must be a number"),
    ({"layers": 3}, TypeError, "layers must be a pattern, got 3"),
    ({"layers": "("}, ValueError, r"layers '\(' is not a regular expression"),
    ({"layers": r"layers/\d"}, ValueError, "must have a group, which finds the number"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_BUILDS)
def test_bad_arguments(change: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ot.scale_by_depth(**{"decay": 0.5, **change})


BAD_TREES: list[Any] = [
    (
        {},
        ["blocks/0", "w"],
        r"finds no layer; if layers are stacked in one leaf, say so by `stacked`\.",
    ),
    ({"layers": r"layers/(\w+)"}, ["layers/a"], "whole number, got 'a' at 'layers/a'"),
    ({"layers": r"l(\d)?"}, ["l/w"], "must be a whole number, got None at 'l/w'"),
    ({"layers": r"l(-?\d)"}, ["l-1"], "must be a whole number, got '-1' at 'l-1'"),
    ({"first": "z"}, ["layers/0", "w"], "first 'z' matches no leaf"),
    ({"top": "z"}, ["layers/0", "w"], "top 'z' matches no leaf"),
    ({"last": "z"}, ["layers/0", "w"], "last 'z' matches no leaf"),
    ({"stacked": "z"}, ["layers/0", "w"], "stacked 'z' matches no leaf"),
    (
        {"first": "w", "last": "."},
        ["layers/0", "w"],
        "at 'w' is in both first and last",
    ),
    ({"first": "w", "top": "w"}, ["layers/0", "w"], "at 'w' is in both first and top"),
]


@pytest.mark.parametrize(("change", "paths", "message"), BAD_TREES)
def test_trees_that_do_not_fit(change: Any, paths: Any, message: str) -> None:
    tx = ot.scale_by_depth(0.5, **change)
    tree = {path: jnp.ones(2) for path in paths}
    with pytest.raises(ValueError, match=message):
        tx.init(tree)
    with pytest.raises(ValueError, match=message):
        tx.update(tree, optax.EmptyState())


def test_only_one_thing_counts_layers() -> None:
    tx = ot.scale_by_depth(0.5, stacked="w")
    message = r"'layers/1/w' is a stack, but layers '.*' finds layer 1 in its path"
    with pytest.raises(ValueError, match=message):
        tx.init({"layers": {"1": {"w": jnp.ones((2, 2))}}})
