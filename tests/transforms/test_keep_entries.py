"""A fixed entry mask: what passes, what the state holds, and the errors."""

from typing import Any, cast

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks
from optaxtricks._core.bit_packing import pack, packing_axis, unpack
from tests.problems import temp_bytes_of_step

# States are read here field by field, and bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

RNG = np.random.default_rng(0)
SHAPES = [(), (1,), (0, 3), (5,), (8, 3), (9, 4), (3, 16), (3, 3, 16, 5), (4, 7)]


def run(tx, grads, params=None):
    return tx.update(grads, tx.init(grads), params)[0]


def bits(x):
    return np.asarray(x).view(np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packing_round_trip(shape):
    mask = np.asarray(RNG.random(shape) < 0.5)
    packed = pack(mask)
    np.testing.assert_array_equal(packed, pack(jnp.asarray(mask)))
    assert packed.dtype == np.uint8 and packed.size <= max(1, mask.size)
    got = unpack(jnp.asarray(packed), shape, jnp.zeros(shape))
    np.testing.assert_array_equal(got, mask)


def test_packing_takes_one_bit_an_entry_and_avoids_the_last_axis():
    for shape, axis in (
        ((32000, 768), 0),
        ((30522, 768), 1),
        ((50257, 1023), 0),
        ((12, 768, 3072), 1),
        ((3, 3, 64, 128), 2),
        ((3, 4096), 1),
        ((16, 768, 3072), 1),
    ):
        assert packing_axis(shape) == axis
        like = jax.ShapeDtypeStruct(shape, bool)
        size = jax.eval_shape(pack, like).size
        assert size <= 1.125 * np.prod(shape) / 8


DTYPES = ["float16", "bfloat16", "float32", "complex64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_kept_entries_pass_and_others_become_negative_zero(dtype):
    grads = jnp.asarray(RNG.standard_normal((9, 4))).astype(dtype)
    grads = grads.at[0, 0].set(jnp.nan).at[0, 1].set(jnp.nan)
    mask = RNG.random((9, 4)) < 0.5
    mask[0, :2] = False, True
    got = run(ot.keep_entries(mask), grads)
    zero = np.full((9, 4), -np.zeros((), grads.dtype))
    np.testing.assert_array_equal(bits(got), bits(np.where(mask, grads, zero)))
    assert got.dtype == grads.dtype


def test_adding_what_is_not_kept_changes_no_bit():
    """x + 0.0 would turn -0.0 into 0.0."""
    params = jnp.array([-0.0, 0.0, 1.2e-38, -jnp.inf, 3.0])
    for mask in (np.zeros(5, bool), False):
        updates = run(ot.keep_entries(mask), jnp.full(5, jnp.nan))
        np.testing.assert_array_equal(bits(params + updates), bits(params))


def test_float64():
    with jax.enable_x64(True):
        grads = jnp.asarray([1.0, 1 / 3, 5.0])
        mask = np.array([True, True, False])
        got = run(ot.keep_entries(mask, rescale=True), grads)
        assert got.dtype == jnp.float64
        np.testing.assert_array_equal(got, [1.5, 0.5, 0.0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rescale_divides_by_the_kept_fraction_of_masked_leaves(dtype):
    mask = {"a": np.array([True, False, False]), "b": np.array([True]), "c": True}
    grads = jax.tree.map(lambda n: jnp.ones(n, dtype), {"a": 3, "b": 1, "c": 2})
    got = run(ot.keep_entries(mask, rescale=True), grads)
    assert got["a"].tolist() == [2, 0, 0] and got["b"].tolist() == [2]
    assert got["c"].tolist() == [1, 1]
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(got))


def test_bools_take_no_state_and_cover_subtrees():
    params = {"body": [jnp.ones(3), jnp.ones((2, 2))], "head": {"w": jnp.ones(16)}}
    tx = ot.keep_entries({"body": False, "head": {"w": np.arange(16) < 4}})
    state = tx.init(params)
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(2,)]
    got = run(tx, params)
    assert not np.any(jax.tree.leaves(got["body"])[1])
    assert got["head"]["w"].sum() == 4
    assert jax.tree.leaves(ot.keep_entries(True).init(params)) == []
    same = run(ot.keep_entries(True), params)
    assert same["body"][0] is params["body"][0]


def test_state_shares_no_buffer_with_the_mask():
    mask = jnp.arange(64).reshape(8, 8) % 3 == 0
    tx = ot.keep_entries(mask)
    step = jax.jit(lambda g, s: tx.update(g, s), donate_argnums=1)
    first, _ = step(jnp.ones((8, 8)), tx.init(jnp.ones((8, 8))))
    again, _ = step(jnp.ones((8, 8)), tx.init(jnp.ones((8, 8))))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, mask)
    host = np.array([True, False])
    tx = ot.keep_entries(host)
    host[:] = False
    assert run(tx, jnp.ones(2)).tolist() == [1, 0]


def test_mask_is_an_operand_of_the_step_and_not_a_constant():
    mask = RNG.random((512, 512)) < 0.5
    tx, grads = ot.keep_entries(mask), jnp.ones((512, 512))
    text = jax.jit(tx.update).lower(grads, tx.init(grads)).as_text()
    assert len(text) < 10_000


def test_a_restored_state_brings_its_own_mask():
    params = jnp.ones(4)
    saved = ot.keep_entries(np.array([True, False, False, True])).init(params)
    fresh = ot.keep_entries(np.array([False, True, True, False]))
    assert fresh.update(params, saved)[0].tolist() == [1, 0, 0, 1]


def test_map_params_and_masked_leaves():
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    mask = {"a": np.array([True, False, True]), "b": np.array([False, True])}
    tx: Any = optax.chain(ot.keep_entries(mask, rescale=True), optax.trace(0.9))
    plus_one: Any = lambda x: x + 1
    state: Any = optax.tree.map_params(tx, plus_one, tx.init(params))
    assert state[1].trace["a"].tolist() == [1, 1, 1]
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))
    some = optax.masked(ot.keep_entries(mask), {"a": True, "b": False})
    got = run(some, params)
    assert got["a"].tolist() == [1, 0, 1] and got["b"].tolist() == [1, 1]
    none = optax.masked(ot.keep_entries(mask), {"a": False, "b": False})
    assert run(none, params)["a"].tolist() == [1, 1, 1]
    with_hole = run(ot.keep_entries(mask), {"a": jnp.ones(3), "b": None})
    assert with_hole["b"] is None and with_hole["a"].tolist() == [1, 0, 1]


def test_mask_and_parameters_meet_by_path():
    class Net(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((4, 2)))
            self.b = nnx.Param(jnp.ones(2))

    mask = {"b": np.array([True, False]), "w": np.arange(8).reshape(4, 2) < 3}
    model = Net()
    boxed = nnx.state(model, nnx.Param)
    scores = jax.tree.map(lambda leaf: jnp.arange(1.0 * leaf.size), boxed)
    for given in (mask, nnx.State(mask)):
        tx = optax.chain(ot.keep_entries(given), optax.scale(-1.0))
        opt = nnx.Optimizer(model, tx, wrt=nnx.Param)
        before = np.asarray(model.w[...])
        opt.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
        np.testing.assert_array_equal(before - model.w[...], mask["w"])
    top = ot.top_fraction_mask(scores, 0.5)
    plain = {"b": jnp.ones(2), "w": jnp.ones(8)}
    assert run(ot.keep_entries(top), plain)["w"].sum() == 5
    frozen = flax.core.freeze({"b": jnp.ones(2), "w": jnp.ones((4, 2))})
    assert isinstance(run(ot.keep_entries(mask), frozen), flax.core.FrozenDict)


MESH_SHAPES = {"even": (64, 16), "odd": (20, 12), "vector": (32,), "conv": (3, 24, 4)}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [("x", "y"), ("x",), (None, "x"), (("x", "y"),)])
def test_on_a_mesh_nothing_travels(kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)

    def place(leaf):
        names = [*spec, None, None][: leaf.ndim]
        sizes = {"x": 4, "y": 2, ("x", "y"): 8, None: 1}
        fits = [
            n if d % sizes[n] == 0 else None
            for n, d in zip(names, leaf.shape, strict=False)
        ]
        return jax.device_put(leaf, NamedSharding(mesh, P(*fits)))

    grads = {k: RNG.standard_normal(s, np.float32) for k, s in MESH_SHAPES.items()}
    mask = {k: RNG.random(s) < 0.4 for k, s in MESH_SHAPES.items()}
    want = run(ot.keep_entries(mask), jax.tree.map(jnp.asarray, grads))
    there = jax.tree.map(place, grads)
    for given in (mask, jax.tree.map(place, mask)):
        tx = ot.keep_entries(given)
        state = tx.init(there)
        step = jax.jit(tx.update).lower(there, state).compile()
        got, after = step(there, state)
        for name, leaf in got.items():
            np.testing.assert_array_equal(bits(leaf), bits(want[name]))
            assert leaf.sharding.is_equivalent_to(there[name].sharding, leaf.ndim)
        for one, other in zip(state.bits, after.bits, strict=True):
            assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        text = step.as_text() or ""
        assert not any(word in text for word in ("all-", "collective-", "scatter("))
    if spec == (None, "x"):
        even = dict(zip(sorted(MESH_SHAPES), state.bits, strict=True))["even"]
        assert even.sharding.spec[1] == "x"


def test_step_needs_no_temporary():
    params = {"w": jnp.ones((512, 768)), "e": jnp.ones((1001, 64))}
    mask = jax.tree.map(lambda leaf: RNG.random(leaf.shape) < 0.3, params)
    with jax.numpy_dtype_promotion("standard"):
        tx = ot.child_tuning_d(optax.adamw(1e-3), mask)
        assert temp_bytes_of_step(tx, params, params) < 10_000


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ({"w": np.ones((2, 3), np.float32)}, TypeError, "'w' is float32"),
        ({"w": np.ones((2, 3), np.int8)}, TypeError, "'w' is int8"),
        ({"w": 1}, TypeError, "'w' is int"),
        ({"w": "all"}, TypeError, "'w' is str"),
        ({}, ValueError, "mask is empty"),
        (None, ValueError, "mask is empty"),
        ({"a": {"b": True}, "a/b": True}, ValueError, "two leaves of the same path"),
    ],
)
def test_bad_masks_fail_at_build(mask, error, message):
    with pytest.raises(error, match=message):
        ot.keep_entries(mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"w": np.ones((3, 2), bool)}, r"'w': expected shape \(2, 3\), got \(3, 2\)"),
        ({"v": True}, "mask says nothing about the leaf at 'w'; its entries: 'v'"),
        ({"w": True, "v": True}, "match no parameter: 'v'. Paths: 'w'"),
        ({"w": {"x": True}}, "mask says nothing about the leaf at 'w'"),
    ],
)
def test_masks_that_do_not_fit_fail_at_init(mask, message):
    with pytest.raises(ValueError, match=message):
        ot.keep_entries(mask).init({"w": jnp.ones((2, 3))})


def test_other_errors():
    whole = ot.keep_entries({"w": np.ones(3, bool)})
    with pytest.raises(ValueError, match=r"'w' is an array of shape .* such as 'w/a'"):
        whole.init({"w": {"a": jnp.ones(3)}})
    with pytest.raises(TypeError, match=r"floating-point leaves.*'w'"):
        whole.init({"w": jnp.arange(3)})
    with pytest.raises(TypeError, match="rescale must be True or False"):
        ot.keep_entries(True, **{"rescale": "yes"})
    with pytest.raises(ValueError, match="rescale=True needs a mask array"):
        ot.keep_entries({"w": np.zeros(3, bool)}, rescale=True)
    with pytest.raises(ValueError, match="made with another mask"):
        whole.update({"w": None}, whole.init({"w": jnp.ones(3)}))


def test_state_made_with_another_mask_is_refused():
    grads = {"a": jnp.ones(16), "b": jnp.ones(2)}
    first = {"a": np.arange(16) == 15, "b": False}
    other = {"a": False, "b": np.array([True, True])}
    state = ot.keep_entries(first).init(grads)
    with pytest.raises(ValueError, match="was made with another mask: this one needs"):
        ot.keep_entries(other).update(grads, state)
    with pytest.raises(ValueError, match="mask at 'a': expected shape"):
        ot.keep_entries(first).update({**grads, "a": jnp.ones(3)}, state)
