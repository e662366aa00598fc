"""Whole rows and tiles that a mask keeps, taken out and put back as such."""

import itertools
import math
from collections.abc import Iterator
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
from tests.problems import assert_same, values

# States are read here field by field.
ot = cast(Any, optaxtricks)

INNER = optax.sgd(0.5, momentum=0.5)
# Leaf, mask before its pieces are written out, and the shape of a piece in the state.
PIECES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "tiles": ((64, 512), (8, 4), (8, 128)),
    "tiles of layers": ((3, 16, 256), (3, 2, 2), (8, 128)),
    "one tile": ((8, 128), (1, 1), (8, 128)),
    "layers": ((4, 16, 128), (4, 1, 1), (8, 128)),
    "rows": ((50, 130), (50, 1), (130,)),
    "rows in parts": ((48, 512), (48, 1), (128,)),
    "rows of layers": ((4, 6, 129), (4, 6, 1), (129,)),
    "short rows": ((50, 100), (50, 1), ()),
}


def mask_of(name: str, seed: int = 0) -> np.ndarray:
    """A mask of whole pieces, some of them kept."""
    shape, drawn, _ = PIECES[name]
    rng = np.random.default_rng(seed)
    kept = rng.random(drawn) < 0.4
    kept.reshape(-1)[0] = True
    for axis, (long, short) in enumerate(zip(shape, drawn, strict=True)):
        kept = np.repeat(kept, long // short, axis)
    return kept


def bits(x: Any) -> np.ndarray:
    return np.asarray(x).view(np.uint8)


def walk(tx: Any, params: Any, steps: int = 3) -> tuple[Any, Any]:
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(steps):
        grads = values(params.shape, params.dtype, step + 1)
        updates, state = update(grads, state, params)
        params = params + updates
    return params, state


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "complex64"])
@pytest.mark.parametrize("name", PIECES)
def test_pieces_walk_as_under_child_tuning(name: str, dtype: str) -> None:
    shape, _, piece = PIECES[name]
    mask, params = mask_of(name), values(shape, dtype, 0)
    got, state = walk(ot.compact_entries(INNER, mask), params)
    assert_same(got, walk(ot.child_tuning_d(INNER, mask), params)[0])
    (trace,) = jax.tree.leaves(state.inner)
    (lists,) = state.indices
    ones = (1,) * len(piece)
    assert lists.shape[lists.ndim - len(piece) :] == ones
    assert trace.shape == (*lists.shape[: lists.ndim - len(piece)], *piece)
    kept = mask.sum() // math.prod(piece)
    assert kept <= lists.size <= 1.25 * kept


def test_what_is_not_kept_gets_negative_zero_and_is_never_read() -> None:
    mask = mask_of("tiles")
    grads = np.random.default_rng(1).standard_normal(mask.shape, np.float32)
    tx = ot.compact_entries(optax.identity(), mask)
    got, _ = tx.update(np.where(mask, grads, np.nan), tx.init(grads))
    np.testing.assert_array_equal(bits(got), bits(np.where(mask, grads, -0.0)))


def test_one_entry_less_is_listed_by_entries() -> None:
    mask = mask_of("tiles")
    mask[0, 0] = False
    params = values(mask.shape, jnp.float32, 0)
    got, state = walk(ot.compact_entries(INNER, mask), params)
    assert_same(got, walk(ot.child_tuning_d(INNER, mask), params)[0])
    assert jax.tree.leaves(state.inner)[0].shape == state.indices[0].shape


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [P("x", "y"), P(None, "x"), P(("x", "y"))], ids=str)
def test_pieces_stay_on_the_device_that_has_them(spec: P, kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    row = np.random.default_rng(0).permutation(8) < 3
    tiles = np.tile(np.stack([np.roll(row, i) for i in range(8)]), 4)
    mask = np.kron(tiles, np.ones((8, 128), bool))
    tx, grads = ot.compact_entries(INNER, mask), values(mask.shape, jnp.float32, 0)
    there = jax.device_put(grads, NamedSharding(mesh, spec))
    state = tx.init(there)
    step = jax.jit(tx.update).lower(there, state, there).compile()
    assert exchanges(step.as_text()) == []
    got, after = step(there, state, there)
    assert_same((got, after), jax.jit(tx.update)(grads, tx.init(grads), grads))
    assert got.sharding.is_equivalent_to(there.sharding, 2)
    parts = mask.size // there.addressable_shards[0].data.size
    for leaf in jax.tree.leaves(after):
        assert leaf.addressable_shards[0].data.size * parts == leaf.size


def test_under_vmap_pieces_of_each_model_move() -> None:
    tx, mask = ot.compact_entries(INNER, mask_of("tiles")), mask_of("tiles")
    grads = values((3, *mask.shape), jnp.float32, 0)
    got, _ = jax.vmap(tx.update)(grads, jax.vmap(tx.init)(grads))
    assert_same(got, jnp.stack([tx.update(g, tx.init(g))[0] for g in grads]))


def test_state_of_other_pieces_is_refused() -> None:
    rows, tiles = np.arange(8)[:, None] == 0, np.ones((8, 128), bool)
    params, makes = jnp.ones((8, 128)), (rows, tiles, np.eye(8, 128, dtype=bool))
    for one, other in itertools.permutations(makes, 2):
        state = ot.compact_entries(INNER, one).init(params)
        with pytest.raises(ValueError, match="mask"):
            ot.compact_entries(INNER, other).update(params, state, params)


@pytest.fixture
def as_on_a_tpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs take a TPU's branches, and those traced before or here are forgotten."""
    choose = lambda *args, default, tpu=None, **others: (tpu or default)(*args)
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    jax.clear_caches()
    yield
    jax.clear_caches()


# With one device, and with so many that lists may lie apart from blocks.
@pytest.mark.parametrize("devices", [1, 2**20])
@pytest.mark.parametrize("name", PIECES)
def test_a_tpus_branch_does_the_same(
    name: str, devices: int, as_on_a_tpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = mask_of(name)
    grads = np.random.default_rng(1).standard_normal(mask.shape, np.float32)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    tx = ot.compact_entries(optax.identity(), mask)
    got, _ = tx.update(np.where(mask, grads, np.nan), tx.init(grads))
    np.testing.assert_array_equal(bits(got), bits(np.where(mask, grads, -0.0)))
