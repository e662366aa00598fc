"""Readings against NumPy, over dtypes, groups, odd leaves, containers and devices."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from optaxtricks._core import counts, total_passes
from optaxtricks.transforms.monitor_groups import _readings
from tests.problems import (
    CONTAINERS,
    assert_same,
    layout,
    small_tree,
    temp_bytes,
    values,
)


def _tree(dtype: Any = jnp.float32) -> Any:
    """Rows long enough to be read in runs (without and with a rest), and short."""
    shapes = {"a": (6, 192), "b": (4, 3, 256), "c": (5, 403), "d": (7, 3), "e": (40,)}
    tree = {name: values(shape, dtype, seed=3) for name, shape in shapes.items()}
    holed = lambda x: x.at[2].set(0).at[..., 0].set(0) if x.ndim > 1 else x.at[3].set(0)
    return {**jax.tree.map(holed, tree), "f": values((), dtype, seed=4)}


def reference(leaves: list[np.ndarray]) -> dict[str, float]:
    """The five readings of a group, from their definitions."""
    flat = np.concatenate([np.abs(x).astype(np.float64).ravel() for x in leaves])
    rows = [row for x in leaves if x.ndim > 1 for row in x]
    norm = np.sqrt((flat**2).sum())
    return {
        "norm": norm,
        "rms": norm / np.sqrt(max(flat.size, 1)),
        "max": flat.max(initial=0.0),
        "zero_fraction": (flat == 0).sum() / max(flat.size, 1),
        "active_row_fraction": sum(map(np.any, rows)) / max(len(rows), 1),
    }


def readings(tx: Any, updates: Any, label: str = "all") -> dict[str, float]:
    """What one update leaves in the state."""
    _, state = jax.jit(tx.update)(updates, tx.init(updates))
    found = ot.metrics(state)
    ending = f"updates/{label}/"
    return {k.removeprefix(ending): float(v) for k, v in found.items() if ending in k}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_readings_are_those_of_numpy(dtype: str) -> None:
    updates = _tree(jnp.dtype(dtype))
    got = readings(ot.monitor_groups("all"), updates)
    want = reference([np.asarray(x) for x in jax.tree.leaves(updates)])
    assert got == pytest.approx(want, rel=2e-6)


def test_float64_is_summed_in_float64() -> None:
    with jax.enable_x64(True):
        updates = {"w": jnp.asarray([3e-30, 4e-30], jnp.float64)}
        assert updates["w"].dtype == jnp.float64
        got = readings(ot.monitor_groups("all"), updates)
    assert got["max"] == pytest.approx(4e-30)
    assert got["norm"] == pytest.approx(5e-30)


POWERS = [-126, -110, -90, -63, -45, -40, -20, 0, 20, 42, 44, 63, 64, 90, 126]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_norms_of_every_size(dtype: str) -> None:
    """Squares of such numbers are no float32 numbers."""
    wide = np.complex128 if dtype == "complex64" else np.float64
    rng, shapes = np.random.default_rng(1), {"a": (3, 131), "d": (7, 3), "f": ()}
    ones = {k: rng.uniform(1.0, 1.5, shape) for k, shape in shapes.items()}
    tx = ot.monitor_groups({"a": "x", "d": "y", "f": "x"})
    step: Any = jax.jit(
        lambda updates: ot.metrics(tx.update(updates, tx.init(updates))[1])
    )
    for power in POWERS:
        scale = lambda x, power=power: jnp.asarray(x.astype(wide) * 2.0**power, dtype)
        updates = jax.tree.map(scale, ones)
        got = {name: float(value) for name, value in step(updates).items()}
        for label in "xy":
            leaves = [np.asarray(updates[k]) for k in ("af" if label == "x" else "d")]
            flat = np.concatenate([np.abs(x.astype(wide)).ravel() for x in leaves])
            norm = np.sqrt((flat**2).sum())
            rms = norm / np.sqrt(flat.size)
            assert got[f"updates/{label}/rms"] == pytest.approx(rms, rel=2e-6, abs=0)
            norm = np.inf if norm > float(jnp.finfo(jnp.float32).max) else norm
            assert got[f"updates/{label}/norm"] == pytest.approx(norm, rel=2e-6, abs=0)


@pytest.mark.parametrize("large", [1e-30, 1e-10, 1.0, 1e15, 1e36])
def test_the_largest_leaf_decides_on_the_scale(large: float) -> None:
    updates = {
        "large": jnp.full((2, 256), large),
        "half": jnp.full(3, 0.1 * large),
        "tiny": jnp.full((200,), 1e-37),
        "f16": jnp.full((3, 256), 6e-8, jnp.float16),
        "none": jnp.zeros((2, 2)),
    }
    got = readings(ot.monitor_groups("all"), updates)
    want = reference([np.asarray(x) for x in jax.tree.leaves(updates)])
    assert got == pytest.approx(want, rel=2e-6)


def test_finite_numbers_pass_where_jax_looks_for_infinite_ones() -> None:
    tx = ot.monitor_groups({"a": "x", "b": "x"})
    for size in 1e-30, 1.0, 1e30:
        updates = {"a": jnp.full((3, 256), size), "b": jnp.full(5, size)}
        with jax.debug_infs(True):
            _, state = tx.update(updates, tx.init(updates))
            found = ot.metrics(state)
        assert float(found["updates/x/rms"]) == pytest.approx(size, rel=1e-6, abs=0)


def test_infinity_shows_at_every_scale() -> None:
    for other in 1e-30, 1.0, 1e30:
        updates = {"w": jnp.full((2, 256), other).at[0, 3].set(jnp.inf)}
        got = readings(ot.monitor_groups("all"), updates)
        assert got["norm"] == got["rms"] == got["max"] == np.inf
        got = readings(ot.monitor_groups("all"), {**updates, "n": jnp.full(2, jnp.nan)})
        assert np.isnan(got["norm"]) and np.isnan(got["rms"])


def test_each_label_has_its_own_leaves() -> None:
    updates = _tree()
    named = {"a": "x", "b": "y", "c": "x", "d": "y", "e": "x", "f": "y"}
    by_path = ot.label_by_path({"[ace]": "x"}, default="y")
    for labels in (named, by_path, lambda tree: {k: named[k] for k in tree}):
        tx = ot.monitor_groups(labels)
        for label in "xy":
            group = [np.asarray(updates[k]) for k in named if named[k] == label]
            want = reference(group)
            assert readings(tx, updates, label) == pytest.approx(want, rel=2e-6)


def test_a_prefix_of_labels_names_subtrees() -> None:
    updates = {"emb": jnp.ones((2, 2)), "layer": {"b": jnp.zeros(2), "w": jnp.ones(2)}}
    tx = ot.monitor_groups({"emb": "table", "layer": "rest"})
    assert readings(tx, updates, "rest")["zero_fraction"] == 0.5
    for make in CONTAINERS.values():
        params = make(jnp.ones(6), jnp.zeros((4, 6)))
        assert readings(ot.monitor_groups({"layer": "l"}), params, "l")["max"] == 1


def test_updates_pass_bit_for_bit() -> None:
    updates = {**small_tree(), "odd": jnp.asarray([-0.0, jnp.nan, jnp.inf, 1e-45])}
    tx = ot.monitor_groups("all")
    got, _ = jax.jit(tx.update)(updates, tx.init(updates))
    assert_same(got, updates)


def test_nan_shows_and_is_no_zero() -> None:
    updates = {"w": jnp.zeros((4, 400)).at[1, 7].set(jnp.nan)}
    got = readings(ot.monitor_groups("all"), updates)
    assert np.isnan(got["norm"]) and np.isnan(got["max"]) and np.isnan(got["rms"])
    assert got["active_row_fraction"] == 0.25
    assert got["zero_fraction"] == pytest.approx(1599 / 1600, abs=1e-7)


def test_empty_leaves_and_holes_count_for_nothing() -> None:
    updates = {
        "empty": jnp.zeros((0, 4)),
        "flat": jnp.zeros((3, 0)),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    nothing = dict.fromkeys(("norm", "rms", "max"), 0.0)
    nothing |= dict.fromkeys(("zero_fraction", "active_row_fraction"), 0.0)
    assert readings(ot.monitor_groups("all"), updates) == nothing
    more = {**updates, "w": jnp.ones(2)}
    assert readings(ot.monitor_groups("all"), more)["rms"] == 1


OTHER_PASSES = pytest.mark.parametrize("read", ["by_rows", "at_once"])
"""Of GPUs and of TPUs; any platform can take them."""


@pytest.fixture
def taken(read: str, monkeypatch: Any) -> Iterator[list[str]]:
    """Takes another pass in place of this platform's; tells when it was traced."""
    traced, pass_of = list[str](), getattr(total_passes, read)
    jitted: Any = _readings

    def noted(leaves: Any) -> Any:
        traced.append(read)
        return pass_of(leaves)

    # What was traced before, and what is now, is not for other tests.
    jitted.clear_cache()
    monkeypatch.setattr(total_passes, "by_runs", noted)
    yield traced
    jitted.clear_cache()


@OTHER_PASSES
def test_other_platforms_read_the_same(read: str, taken: list[str]) -> None:
    sizes = {"small": 2.0**-110, "one": 1.0, "large": 2.0**110}
    tree = {k: v for k, v in _tree().items() if k in "bdef"}
    updates: Any = {
        k: jax.tree.map(lambda x, s=s: x * s, tree) for k, s in sizes.items()
    }
    updates["odd"] = [jnp.zeros((3, 5), jnp.bfloat16).at[1].set(jnp.nan)]
    updates["inf"] = [values((2, 3), jnp.complex64, 1), jnp.asarray(jnp.inf)]
    updates["stack"] = values((6, 3, 130), jnp.bfloat16, 1).at[:, 1].set(0)
    tx = ot.monitor_groups({k: k for k in updates}, stacked={"^stack$": 1})
    _, state = jax.jit(tx.update)(updates, tx.init(updates))
    assert set(taken) == {read}
    got = {name: float(value) for name, value in ot.metrics(state).items()}
    layers = {f"stack/{i}": [updates["stack"][:, i]] for i in range(3)}
    for label, part in {**updates, **layers}.items():
        if label == "stack":
            continue
        want = reference([np.asarray(x) for x in jax.tree.leaves(part)])
        found = {k: got[f"updates/{label}/{k}"] for k in want}
        assert found == pytest.approx(want, rel=2e-6, abs=0, nan_ok=True), label


def test_counts_are_exact_where_float32_counts_are_not() -> None:
    size = 2**24 + 3  # float32 cannot tell it from its neighbours
    zeros = [jnp.zeros(size, jnp.float16), jnp.zeros((1, size), jnp.float16)]
    leaves = lambda arrays: total_passes.Leaves(arrays, [None, None])
    for read in (total_passes.by_runs, total_passes.by_rows, total_passes.at_once):
        count = jax.jit(lambda x, read=read: read(leaves(x)))(zeros).zeros
        assert _whole(count) == 2 * size
        assert float(counts.fraction(count, 2 * size)) == 1.0


def test_counts_go_on_where_uint32_ends() -> None:
    # As the counts of rows of a leaf of more than 2**32 entries would be.
    rows = jnp.full((5,), 2**32 - 1, jnp.uint32)
    count = counts.total_count(rows, 5 * 2**32)
    assert _whole(count) == 5 * (2**32 - 1)
    both = counts.added([count, count])
    assert _whole(both) == 10 * (2**32 - 1)
    assert float(counts.fraction(both, 10 * (2**32 - 1))) == 1.0
    assert _whole(counts.with_known(count, -7)) == 5 * (2**32 - 1) - 7


def _whole(count: Any) -> int:
    return 256 * int(count[0]) + int(count[1])


@pytest.mark.parametrize("padded", [False, True])
def test_row_sparse_updates_count_as_their_table(padded: bool) -> None:
    ids = jnp.asarray([3, 1, 3, 6] if padded else [3, 1, 3, 0])
    rows = values((4, 5), jnp.float32, 0).at[1, 2].set(0)
    sparse = ot.RowSparse(ids, rows, 6)
    if padded:  # rows of padding count for nothing
        sparse = ot.RowSparse(jnp.asarray([3, 1, 6]), rows[:3], 6)
    labels = ot.label_by_path({"^emb$": "table"}, default="rest")
    tx = ot.monitor_groups(labels)
    state = tx.init({"emb": jnp.zeros((6, 5)), "w": jnp.ones(2)})
    updates = {"emb": sparse, "w": jnp.ones(2)}
    got, after = jax.jit(tx.update)(updates, state)
    assert_same(got, updates)
    assert layout(after) == layout(state)
    want = reference([np.asarray(sparse.to_dense())])
    found = {k: float(v) for k, v in after.readings["updates"]["table"].items()}
    assert found == pytest.approx(want, rel=2e-6)


def test_more_lookups_than_rows() -> None:
    ids = jnp.asarray([0, 0, 1, 1, 0])
    tx = ot.monitor_groups("all")
    sparse = ot.RowSparse(ids, jnp.ones((5, 2)), 2)
    _, after = tx.update({"t": sparse}, tx.init({"t": jnp.zeros((2, 2))}))
    found = ot.metrics(after)
    assert float(found["updates/all/zero_fraction"]) == 0
    assert float(found["updates/all/max"]) == 3


def test_rows_that_move_without_a_gradient_show() -> None:
    watch = lambda name: ot.monitor_groups("all", name=name)
    tx = optax.chain(watch("grads"), ot.lion(0.5), watch("updates"))
    params = {"emb": jnp.ones((4, 2))}
    state = tx.init(params)
    for row in (0, 1):
        grads = {"emb": jnp.zeros((4, 2)).at[row].set(1.0)}
        _, state = tx.update(grads, state, params)
    found = ot.metrics(state)
    assert float(found["grads/all/active_row_fraction"]) == 0.25
    assert float(found["updates/all/active_row_fraction"]) == 1.0  # decay moves all


COLLECTIVE = re.compile(r"= (\S+) (?:all-reduce|all-gather|all-to-all|collective-perm)")


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axes", [("rows", None), (None, "cols"), ("rows", "cols")])
def test_devices_exchange_scalars_and_a_bit_a_row(axes: Any, kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("rows", "cols"), axis_types=(kind,) * 2)
    there = NamedSharding(mesh, PartitionSpec(*axes))
    updates = {"w": values((8, 384), jnp.float32, 1).at[3].set(0)}
    one = readings(ot.monitor_groups("all"), updates)
    placed = jax.device_put(updates, {"w": there})
    tx = ot.monitor_groups("all")
    compiled = jax.jit(tx.update).lower(placed, tx.init(updates)).compile()
    sent = set(COLLECTIVE.findall(compiled.as_text() or ""))
    sizes = [re.findall(r"(\w+)\[(\d*)\]", found) for found in sent]
    for dtype, length in (part for parts in sizes for part in parts):
        assert not length or (dtype == "pred" and axes[1] and int(length) <= 8)
    assert sizes
    assert readings(tx, placed) == pytest.approx(one, rel=1e-6)


def test_gradients_pass_through_and_readings_are_constants() -> None:
    tx = ot.monitor_groups("all")
    x = values((4, 384), jnp.float32, 2)
    state = tx.init({"w": x})

    def loss(x: Any) -> Any:
        both: Any = tx.update({"w": x * x}, state)
        return both[0]["w"].sum() + ot.metrics(both[1])["updates/all/rms"]

    assert_same(jax.grad(loss)(x), 2 * x)


def test_the_pass_over_runs_lowers_for_every_platform_and_batches() -> None:
    tx = ot.monitor_groups("all")
    updates = {"w": values((3, 4, 384), jnp.float32, 2)}
    step = lambda updates: ot.metrics(tx.update(updates, tx.init(updates))[1])
    traced = jax.jit(step).trace(updates)
    for platform in ("cpu", "cuda", "tpu"):
        assert traced.lower(lowering_platforms=(platform,)).as_text()
    batched = jax.vmap(step)(updates)["updates/all/norm"]
    each = [step({"w": x})["updates/all/norm"] for x in updates["w"]]
    assert_same(batched, jnp.stack(each), ulps=4)


def test_it_takes_little_memory_ahead_of_an_optimizer() -> None:
    params = {"w": jnp.ones((512, 768))}
    alone, watched = (
        optax.adam(1e-3),
        optax.chain(ot.monitor_groups("all"), optax.adam(1e-3)),
    )
    step = lambda tx: lambda p, s, g: tx.update(g, s, p)
    with jax.numpy_dtype_promotion("standard"):
        temps = [
            temp_bytes(
                jax.jit(step(tx)).lower(params, tx.init(params), params).compile()
            )
            for tx in (alone, watched)
        ]
    assert temps[1] - temps[0] < params["w"].nbytes * 0.3


def test_bad_arguments() -> None:
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="name must not be empty"):
        ot.monitor_groups("all", name="")
    with pytest.raises(TypeError, match="name must be a string, got 3"):
        wrong: Any = 3
        ot.monitor_groups("all", name=wrong)
    with pytest.raises(TypeError, match=r"labels must be strings, but .* at 'a'"):
        ot.monitor_groups({"a": 1, "b": "x"}).init(params)
    with pytest.raises(ValueError, match="labels says nothing about the leaf at 'b'"):
        ot.monitor_groups({"a": "x"}).init(params)
    tx = ot.monitor_groups({"a": "x", "b": "y"})
    with pytest.raises(ValueError, match=r"labels 'x', 'y' but got updates with 'x'"):
        tx.update({"a": jnp.ones(2)}, tx.init(params))
    renamed = ot.monitor_groups("all", name="renamed")
    with pytest.raises(ValueError, match=r"labels \(none\) but got updates with 'all'"):
        renamed.update(params, ot.monitor_groups("all").init(params))
