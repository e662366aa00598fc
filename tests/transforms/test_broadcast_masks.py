"""Mask arrays with axes of size 1 do what their full copies do, and cost less."""

import itertools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks
from tests.collectives import exchanges
from tests.problems import assert_same, temp_bytes_of_step, values

# States are read here field by field.
ot = cast(Any, optaxtricks)

# Leaves and masks: layers, rows, columns, layers on axis 1, all or nothing, full.
PAIRS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "layers": ((12, 5, 8), (12, 1, 1)),
    "rows": ((9, 4), (9, 1)),
    "columns": ((3, 16), (1, 16)),
    "layers of axis 1": ((5, 8, 3), (1, 8, 1)),
    "ends": ((3, 4, 9), (3, 1, 9)),
    "one": ((2, 3), (1, 1)),
    "vector": ((6,), (1,)),
    "empty": ((0, 4), (1, 4)),
    "full": ((7, 3), (7, 3)),
}


def mask_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng([seed, *shape]).random(shape) < 0.5)


def full(mask: Any, params: Any) -> Any:
    """The mask with every array written out."""
    write = lambda m, leaf: np.broadcast_to(m, leaf.shape).copy()
    return jax.tree.map(write, mask, params)


PARAMS = {name: values(leaf, jnp.float32, 0) for name, (leaf, _) in PAIRS.items()}
MASK = {name: mask_of(mask) for name, (_, mask) in PAIRS.items()}
# Some of it is kept, whatever the draw.
MASK["one"][:] = True
FULL = full(MASK, PARAMS)


def grads(seed: int, dtype: Any = jnp.float32) -> Any:
    return {name: values(leaf, dtype, seed) for name, (leaf, _) in PAIRS.items()}


def walk(tx: Any, params: Any, steps: int = 3) -> tuple[Any, Any]:
    """Parameters and state after some steps."""
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        dtype = jax.tree.leaves(params)[0].dtype
        updates, state = update(grads(step + 1, dtype), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
def test_keep_entries_acts_as_with_the_full_copy(dtype: str, rescale: bool) -> None:
    given = grads(0, dtype)
    bad = given["layers"].at[0].set(jnp.nan)
    for updates in (given, {**given, "layers": bad}):
        got, want = (
            tx.update(updates, tx.init(given))
            for tx in (ot.keep_entries(m, rescale=rescale) for m in (MASK, FULL))
        )
        assert_same(got[0], want[0])
    if rescale:
        assert_same(got[1].factor, want[1].factor)
        entries = sum(m.size for m in FULL.values())
        kept = sum(int(m.sum()) for m in FULL.values())
        np.testing.assert_allclose(got[1].factor, entries / kept, rtol=1e-6)


def test_rescaling_counts_the_leaves_that_init_sees() -> None:
    mask = {"a": np.array([[True], [False]]), "b": np.zeros((1, 1), bool)}
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 9))}
    factor = lambda tree: float(ot.keep_entries(mask, rescale=True).init(tree).factor)
    assert factor(params) == 8.0
    assert factor({**params, "b": optax.MaskedNode()}) == 2.0
    assert factor({"a": None, "b": params["b"]}) == 1.0


def test_whole_layers() -> None:
    layers = np.array([True, False]).reshape(2, 1, 1)
    tx = ot.keep_entries({"layers": layers})
    ones = {"layers": jnp.ones((2, 3, 4))}
    got = tx.update(ones, tx.init(ones))[0]["layers"]
    assert got.sum((1, 2)).tolist() == [12, 0]
    assert np.signbit(got[1]).all()


def test_the_state_holds_bits_of_the_mask_as_given() -> None:
    for layers in (1, 8, 9, 96):
        mask = np.arange(layers).reshape(-1, 1, 1) % 2 == 0
        for tx in (ot.keep_entries(mask), ot.keep_entries(jnp.asarray(mask))):
            state = tx.init(jnp.ones((layers, 64, 64)))
            assert sum(x.nbytes for x in state.bits) == math.ceil(layers / 8)
    table = ot.keep_entries(np.ones((1000, 1), bool)).init(jnp.ones((1000, 16)))
    assert table.bits[0].nbytes == 125


def test_the_state_keeps_what_the_mask_was() -> None:
    host = np.array([[True], [False]])
    tx = ot.keep_entries(host)
    compact = ot.compact_entries(optax.identity(), host)
    host[:] = False
    ones = jnp.ones((2, 3))
    for kept in (tx, compact):
        assert kept.update(ones, kept.init(ones))[0].sum() == 3


def test_a_traced_mask() -> None:
    mask, ones = {"w": jnp.asarray(mask_of((9, 1)))}, {"w": jnp.ones((9, 4))}
    made = jax.jit(lambda m, p: ot.keep_entries(m).init(p))(mask, ones)
    assert_same(made, ot.keep_entries(mask).init(ones))


def test_a_state_of_another_shape_of_mask_is_refused() -> None:
    shapes = [
        (8, 8, 3),
        (8, 1, 1),
        (1, 8, 1),
        (8, 1, 3),
        (1, 8, 3),
        (1, 1, 1),
        (8, 8, 1),
    ]
    ones = jnp.ones((8, 8, 3))
    states = [ot.keep_entries(np.ones(s, bool)).init(ones) for s in shapes]
    for (i, shape), (j, state) in itertools.product(
        enumerate(shapes), enumerate(states)
    ):
        # A state of the same shapes brings its own mask.
        tx = ot.keep_entries(np.zeros(shape, bool))
        if i == j:
            assert tx.update(ones, state)[0].all()
        else:
            with pytest.raises(ValueError, match="was made with another mask: this"):
                tx.update(ones, state)


def test_optax_and_the_summary_read_the_state() -> None:
    tx: Any = optax.chain(ot.keep_entries(MASK, rescale=True), optax.trace(0.5))
    state = tx.init(PARAMS)
    plus_one: Any = lambda x: x + 1
    changed: Any = optax.tree.map_params(tx, plus_one, state)
    assert_same(changed[0], state[0])
    assert all((x == 1).all() for x in jax.tree.leaves(changed[1].trace))
    params = {"a": jnp.ones((16, 4)), "b": jnp.ones((8, 3))}
    mask = {"a": np.ones((16, 1), bool), "b": np.ones((1, 3), bool)}
    lines = ot.summary(ot.keep_entries(mask), params).splitlines()
    assert lines[-1].split() == ["total", "88", "88", "3", "0.0"]


@pytest.mark.parametrize("options", [{}, {"rescale": True}, {"decay_frozen": True}])
def test_child_tuning_acts_as_with_the_full_copy(options: Any) -> None:
    # Products that are exact, so that XLA may fuse them as it likes; by the factor of
    # `rescale` they are not.
    inner = optax.chain(
        optax.trace(0.5), optax.add_decayed_weights(0.5), optax.scale(-0.5)
    )
    walks = [walk(ot.child_tuning_d(inner, m, **options), PARAMS) for m in (MASK, FULL)]
    (got, state), (want, wanted_state) = walks
    ulps = 4 if "rescale" in options else 0
    assert_same((got, state.inner), (want, wanted_state.inner), ulps=ulps)


@pytest.mark.usefixtures("standard_promotion")
def test_layers_that_are_not_trained_keep_every_bit() -> None:
    params = values((6, 4, 8), jnp.float32, 0)
    kept = np.array([True, False, False, True, False, True])
    tx = ot.child_tuning_d(optax.adamw(0.1, weight_decay=0.5), kept.reshape(6, 1, 1))

    def step(carry: Any, key: jax.Array) -> Any:
        params, state = carry
        drawn = jax.random.normal(key, params.shape)
        updates, state = tx.update(drawn, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), 50)
    (after, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    start, end = (np.asarray(x).view(np.uint32) for x in (params, after))
    np.testing.assert_array_equal((start == end).all((1, 2)), ~kept)
    assert (start != end)[kept].all()


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_compact_entries_acts_as_with_the_full_copy(dtype: str) -> None:
    params = grads(0, dtype)
    make = lambda m: ot.compact_entries(optax.adamw(0.1), m)
    assert_same(*(walk(make(m), params) for m in (MASK, FULL)))


def test_layers_all_kept_and_none() -> None:
    params = {"all": jnp.ones((2, 3, 4)), "none": jnp.ones((2, 3, 4))}
    mask = {"all": np.ones((2, 1, 1), bool), "none": np.zeros((2, 1, 1), bool)}
    tx = ot.compact_entries(optax.trace(0.5), mask)
    state = tx.init(params)
    assert state.indices[0].tolist() == list(range(24)) and len(state.indices) == 1
    assert state.inner.trace["none"] == optax.MaskedNode()
    got, after = tx.update(params, state)
    assert (got["all"] == 1).all() and np.signbit(got["none"]).all()
    assert_same(
        ot.compact_entries(optax.trace(0.5), full(mask, params)).init(params), state
    )
    assert after.inner.trace["all"].shape == (24,)


def test_compact_entries_says_which_leaf_is_too_large() -> None:
    tx = ot.compact_entries(optax.identity(), {"w": np.ones((2, 1), bool)})
    huge = {"w": jax.ShapeDtypeStruct((2, 2**30), jnp.bfloat16)}
    with pytest.raises(ValueError, match="the leaf at 'w' has 2147483648 entries"):
        jax.eval_shape(tx.init, huge)


MESHED: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "layers": ((64, 16, 8), (64, 1, 1)),
    "few layers": ((8, 16, 8), (8, 1, 1)),
    "rows": ((20, 12), (20, 1)),
    "columns": ((24, 64), (1, 64)),
    "ends": ((16, 8, 24), (16, 1, 24)),
    "one": ((16, 8), (1, 1)),
    "vector": ((32,), (1,)),
}
SPECS = [("x", "y"), (None, "x"), (("x", "y"),), (None, "y", "x")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_on_a_mesh_nothing_travels(kind: AxisType, spec: tuple[Any, ...]) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    sizes = {"x": 4, "y": 2, ("x", "y"): 8, None: 1}

    def place(leaf: Any) -> jax.Array:
        names = [*spec, None, None, None][: leaf.ndim]
        fits = [
            name if size % sizes[name] == 0 else None
            for name, size in zip(names, leaf.shape, strict=True)
        ]
        return jax.device_put(leaf, NamedSharding(mesh, P(*fits)))

    given = {name: values(leaf, jnp.float32, 1) for name, (leaf, _) in MESHED.items()}
    mask = {name: mask_of(shape) for name, (_, shape) in MESHED.items()}
    plain = ot.keep_entries(mask, rescale=True)
    want, wanted_state = plain.update(given, plain.init(given))
    there = jax.tree.map(place, given)
    for masks, compiled in ((mask, False), (jax.tree.map(place, mask), True)):
        tx = ot.keep_entries(masks, rescale=True)
        places = ot.state_shardings(tx, there)
        init = jax.jit(tx.init, out_shardings=places) if compiled else tx.init
        state = init(there)
        step = jax.jit(tx.update).lower(there, state).compile()
        got, after = step(there, state)
        assert_same((got, after), (want, wanted_state))
        assert exchanges(step.as_text()) == []
        for one, other in zip(*map(jax.tree.leaves, (got, there)), strict=True):
            assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        for one, other in zip(after.bits, places.bits, strict=True):
            assert one.sharding.is_equivalent_to(other, one.ndim)
        specs = [x.sharding.spec for x in state.bits]
        by_name = dict(zip(sorted(MESHED), specs, strict=True))
        if spec == ("x", "y"):
            assert by_name["layers"] == P("x") and by_name["one"] == P()
            assert by_name["columns"] == P(None, "y")


def test_a_mesh_axis_of_one_device() -> None:
    mesh = jax.make_mesh((8, 1), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    put = lambda leaf: jax.device_put(leaf, NamedSharding(mesh, P("x", "y")))
    for leaf, shape in (((64, 1), (64, 1)), ((64, 3), (64, 1)), ((8, 3), (8, 3))):
        grad, mask = values(leaf, jnp.float32, 1), mask_of(shape)
        tx = ot.keep_entries(mask)
        got, _ = jax.jit(tx.update)(put(grad), tx.init(put(grad)))
        assert_same(got, tx.update(grad, tx.init(grad))[0])


def test_a_step_needs_no_more_than_the_mask_as_given() -> None:
    params = {"w": jnp.ones((8, 128, 256)), "e": jnp.ones((1001, 64))}
    mask = {"w": np.ones((8, 1, 1), bool), "e": np.ones((1001, 1), bool)}
    tx = ot.child_tuning_d(optax.sgd(0.1, momentum=0.5), mask)
    # A little alignment is allowed for.
    assert temp_bytes_of_step(tx, params, params) <= 8 + 1001 + 64
