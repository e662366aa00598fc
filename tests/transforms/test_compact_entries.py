"""State for kept entries alone: the numbers of the dense optimizer, and the errors."""

import math
from typing import Any, cast

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks
from tests.collectives import exchanges
from tests.problems import assert_same

# States are read here field by field, and bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

RNG = np.random.default_rng(0)


@pytest.fixture
def promotion():
    """Optax's own optimizers need JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def tree(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = {"emb": (9, 4), "layer": {"b": (3,), "w": (2, 3, 5)}, "s": (), "z": (0, 2)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


MASK = jax.tree.map(lambda leaf: np.asarray(RNG.random(leaf.shape) < 0.4), tree())


def bits(x):
    return np.asarray(x).view(np.uint8)


def walk(tx, steps=4, dtype=np.float32, **extra):
    params = tree(dtype=dtype)
    state = tx.init(params)
    for step in range(steps):
        grads = tree(seed=step + 1, dtype=dtype)
        updates, state = jax.jit(tx.update)(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize(
    "mask",
    [MASK, {**MASK, "emb": True, "layer": False}, True],
    ids=["all", "mix", "on"],
)
def test_kept_entries_walk_as_under_child_tuning(promotion, mask, dtype):
    inner = optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(0.1), optax.scale(-0.5)
    )
    got, _ = walk(ot.compact_entries(inner, mask), dtype=dtype)
    want, _ = walk(ot.child_tuning_d(inner, mask), dtype=dtype)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=1e-5 if one.itemsize > 2 else 1e-2)


def test_adamw_moments_exist_for_kept_entries_alone(promotion):
    tx = ot.compact_entries(optax.adamw(1e-2), MASK)
    got, state = walk(tx)
    want, _ = walk(ot.child_tuning_d(optax.adamw(1e-2), MASK))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    sizes = [int(mask.sum()) for mask in jax.tree.leaves(MASK)]
    moments = jax.tree.leaves(state.inner[0].mu)
    assert [kept.shape for kept in moments] == [(n,) for n in sizes if n]


def test_a_window_accumulates_kept_entries_alone(promotion):
    within = lambda tx: optax.MultiSteps(tx, 2).gradient_transformation()
    got, state = walk(ot.compact_entries(within(optax.adam(1e-2)), MASK))
    want, _ = walk(within(ot.compact_entries(optax.adam(1e-2), MASK)))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    sizes = [int(mask.sum()) for mask in jax.tree.leaves(MASK)]
    sums = jax.tree.leaves(state.inner.acc_grads)
    assert [kept.shape for kept in sums] == [(n,) for n in sizes if n]


def test_entries_that_are_not_kept_get_negative_zero_and_are_never_read():
    mask = np.array([[True, False], [False, True]])
    grads = jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]])
    tx = ot.compact_entries(optax.clip_by_global_norm(1e9), mask)
    got, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_array_equal(
        bits(got), bits(np.array([[1, -0.0], [-0.0, 2]], "f4"))
    )
    frozen = ot.compact_entries(optax.identity(), {"a": False, "b": True})
    grads = {"a": grads, "b": grads}
    got, state = frozen.update(grads, frozen.init(grads))
    np.testing.assert_array_equal(bits(got["a"]), bits(np.full((2, 2), -0.0, "f4")))
    assert got["b"] is grads["b"] and jax.tree.leaves(state) == []


def test_inner_sees_paths_and_extra_arguments():
    decay = lambda params: ot.select(params, "^layer/w$")
    by_path = optax.add_decayed_weights(1.0, mask=decay)
    by_tree = optax.add_decayed_weights(1.0, mask=decay(tree()))
    for inner in (by_path, by_tree):
        got, _ = walk(ot.compact_entries(inner, MASK), steps=1)
        want, _ = walk(ot.child_tuning_d(inner, MASK), steps=1)
        jax.tree.map(np.testing.assert_array_equal, got, want)

    def update(updates, state, params=None, *, factor, **extra_args):
        return jax.tree.map(lambda u: u * factor, updates), state

    make: Any = optax.GradientTransformationExtraArgs
    inner = make(lambda params: optax.EmptyState(), update)
    got, _ = walk(ot.compact_entries(inner, MASK), steps=1, factor=3.0, other=1)
    want, _ = walk(ot.child_tuning_d(optax.scale(3.0), MASK), steps=1)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_no_kept_entry_in_a_leaf_or_at_all():
    mask = {"a": np.zeros((2, 2), bool), "b": np.ones(2, bool)}
    grads = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = ot.compact_entries(optax.trace(0.5), mask)
    got, state = tx.update(grads, tx.init(grads))
    assert not got["a"].any() and got["b"].tolist() == [1, 1]
    assert state.inner.trace["a"] == optax.MaskedNode()
    none = ot.compact_entries(optax.trace(0.5), np.zeros(3, bool))
    assert not none.update(jnp.ones(3), none.init(jnp.ones(3)))[0].any()


def test_a_leaf_of_which_nothing_is_kept_takes_no_state():
    """Orbax refuses to save arrays of size zero."""
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3)}
    mask = {"a": np.zeros((2, 2), bool), "b": np.array([True, False, False])}
    state = ot.compact_entries(optax.adam(0.1), mask).init(params)
    assert all(leaf.size for leaf in jax.tree.leaves(state))
    with pytest.raises(ValueError, match="mask at 'a': expected shape"):
        ot.compact_entries(optax.adam(0.1), mask).init({**params, "a": jnp.ones(4)})


def test_state_layout_is_fixed_and_shares_no_buffer():
    mask = jnp.arange(6) % 2 == 0
    tx = ot.compact_entries(optax.trace(0.5), mask)
    grads = jnp.ones(6)
    shapes = jax.eval_shape(tx.init, grads)
    layout = lambda s: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), s)
    step = jax.jit(tx.update, donate_argnums=1)
    for init in (tx.init, jax.jit(tx.init)):
        state = init(grads)
        assert layout(state) == layout(shapes)
        _, after = step(grads, state)
        assert layout(after) == layout(shapes)
    assert after.indices[0].tolist() == [0, 2, 4] and not mask.is_deleted()
    data = flax.serialization.to_bytes(after)
    back = flax.serialization.from_bytes(tx.init(grads), data)
    jax.tree.map(np.testing.assert_array_equal, back, after)


def test_scan_vmap_and_optax_wrappers(promotion):
    tx = ot.compact_entries(optax.trace(0.5), {"a": np.array([True, False]), "b": True})
    grads = {"a": jnp.ones(2), "b": jnp.ones(1)}
    run = lambda state, g: tx.update(g, state)[::-1]
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), grads)
    _, out = jax.lax.scan(run, tx.init(grads), stacked)
    assert out["a"].tolist() == [[1, 0], [1.5, 0], [1.75, 0]]
    each = jax.vmap(lambda g: tx.update(g, tx.init(g))[0])(stacked)
    assert each["a"].tolist() == [[1, 0]] * 3
    part: Any = optax.masked(tx, {"a": True, "b": False})
    assert part.update(grads, part.init(grads))[0]["b"].tolist() == [1]
    mini: Any = optax.MultiSteps(tx, 2).gradient_transformation()
    state = mini.init(grads)
    for want in (0, 1):
        got, state = mini.update(grads, state, grads)
        assert got["a"].tolist() == [want, 0]
    plus_one: Any = lambda x: x + 1
    plus: Any = optax.tree.map_params(tx, plus_one, tx.init(grads))
    assert plus.inner.trace["a"].tolist() == [1]
    assert plus.indices[0].tolist() == [0]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_on_a_mesh_the_numbers_are_the_same(kind):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    put = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P("x", "y")))
    grads = RNG.standard_normal((8, 6), np.float32)
    mask = RNG.random((8, 6)) < 0.3
    tx = ot.compact_entries(optax.trace(0.5), mask)
    want, _ = tx.update(jnp.asarray(grads), tx.init(jnp.asarray(grads)))
    there = put(grads)
    got, after = jax.jit(tx.update)(there, tx.init(there))
    np.testing.assert_array_equal(bits(got), bits(want))
    assert after.inner.trace.shape == (mask.sum(),)
    if kind == AxisType.Explicit:
        assert got.sharding.is_equivalent_to(there.sharding, 2)


@pytest.mark.parametrize(
    "kind",
    [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("spec", [P("x", "y"), P(None, "x"), P(("x", "y"))], ids=str)
def test_entries_stay_on_the_device_that_has_them(promotion, kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    grads = RNG.standard_normal((256, 256), np.float32)
    tx = ot.compact_entries(optax.adamw(0.1), RNG.random((256, 256)) < 0.3)
    there = jax.device_put(grads, NamedSharding(mesh, spec))
    state = tx.init(there)
    step = jax.jit(tx.update).lower(there, state, there).compile()
    assert exchanges(step.as_text()) == []
    got, after = step(there, state, there)
    one = jnp.asarray(grads)
    assert_same((got, after), jax.jit(tx.update)(one, tx.init(one), one))
    parts = 4 if spec[0] is None else 8
    for leaf in (state.indices[0], after.inner[0].mu, after.inner[0].nu):
        assert leaf.addressable_shards[0].data.size * parts == leaf.size


@pytest.mark.parametrize(
    "shape, kept, grid",
    [
        ((128, 256), 0.3, (4, 8)),
        ((128, 256), 0.002, (4, 2)),
        ((2, 64, 96), 0.5, (2, 2, 2)),
        ((999, 70), 0.99, ()),
        ((70000,), 0.99, ()),
    ],
)
@pytest.mark.parametrize("devices", [1, 8])
def test_values_go_back_to_where_they_came_from(
    shape, kept, grid, devices, monkeypatch
):
    """In blocks or one list, words of rows in part, more entries than 16 bits count."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    rng = np.random.default_rng(0)
    mask, grads = rng.random(shape) < kept, rng.standard_normal(shape, np.float32)
    tx = ot.compact_entries(optax.identity(), mask)
    state = tx.init(grads)
    got, _ = tx.update(np.where(mask, grads, np.nan), state)
    np.testing.assert_array_equal(bits(got), bits(np.where(mask, grads, -0.0)))
    (lists,) = state.indices
    assert lists.shape[:-1] == grid and lists.size <= 1.25 * mask.sum()
    size = math.prod(shape) // math.prod(grid)
    assert (lists < size).sum() == mask.sum() and lists.max() <= size


@pytest.mark.parametrize("kind", ["pinned_host", "unpinned_host"])
def test_parameters_in_the_memory_of_the_host(kind):
    if kind not in {m.kind for m in jax.devices()[0].addressable_memories()}:
        pytest.skip(f"no memory of the kind {kind}")
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
    there = NamedSharding(mesh, P("x"), memory_kind=kind)
    grads = RNG.standard_normal((8, 6), np.float32)
    mask = RNG.random((8, 6)) < 0.3
    for tx in (ot.compact_entries(optax.trace(0.5), mask), ot.keep_entries(mask)):
        state = tx.init(jax.device_put(grads, there))
        want = tx.init(jnp.asarray(grads))
        jax.tree.map(np.testing.assert_array_equal, state, want)
        assert {x.sharding.memory_kind for x in jax.tree.leaves(state)} == {"device"}


class Net(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((4, 2)), out_sharding=("x", "y"))
        self.b = nnx.Param(jnp.ones(2))


@pytest.mark.parametrize("meshed", [False, True])
def test_nnx_variables_with_sharding_metadata(meshed):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    mask = {"w": np.arange(8).reshape(4, 2) < 3, "b": np.array([True, False])}
    tx = optax.chain(ot.compact_entries(optax.trace(0.5), mask), optax.scale(-1.0))
    with jax.set_mesh(
        mesh
        if meshed
        else jax.make_mesh((1, 1), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    ):
        model = Net()
        opt = nnx.Optimizer(model, tx, wrt=nnx.Param)
        nnx.get_partition_spec(nnx.state(opt))
        step = nnx.jit(lambda model, opt, g: opt.update(model, g))
        grads = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
        for _ in range(2):
            step(model, opt, grads)
    np.testing.assert_array_equal(model.w[...], 1 - 2.5 * mask["w"])
    np.testing.assert_array_equal(model.b[...], [-1.5, 1])


def test_errors():
    mask = np.ones(3, bool)
    with pytest.raises(TypeError, match=r"inner must be an optax.GradientTransf"):
        ot.compact_entries(**{"inner": mask, "mask": optax.identity()})
    with pytest.raises(TypeError, match=r"mask must be concrete.*'w' is traced"):
        jax.jit(lambda m: ot.compact_entries(optax.identity(), {"w": m}))(mask)
    with pytest.raises(TypeError, match="'w' is float32"):
        ot.compact_entries(optax.identity(), {"w": np.ones(3, np.float32)})
    tx = ot.compact_entries(optax.identity(), {"w": mask})
    with pytest.raises(ValueError, match=r"'w': expected shape \(2,\), got \(3,\)"):
        tx.init({"w": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"compact_entries needs floating.*'w'"):
        tx.init({"w": jnp.arange(3)})
    huge = np.broadcast_to(np.True_, (2**31,))
    with pytest.raises(ValueError, match="'w' has 2147483648 entries"):
        ot.compact_entries(optax.identity(), {"w": huge})


def test_state_made_with_another_mask_is_refused():
    grads = {"a": jnp.ones(16), "b": jnp.ones(2)}
    first = {"a": np.arange(16) == 15, "b": False}
    other = {"a": False, "b": np.array([True, True])}
    state = ot.compact_entries(optax.trace(0.5), first).init(grads)
    with pytest.raises(ValueError, match="was made with another mask: this one needs"):
        ot.compact_entries(optax.trace(0.5), other).update(grads, state)
    with pytest.raises(ValueError, match="mask at 'a': expected shape"):
        ot.compact_entries(optax.trace(0.5), first).update(
            {**grads, "a": jnp.ones(3)}, state
        )
