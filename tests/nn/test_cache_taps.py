"""Cached taps: the same numbers in memory and in a folder, in the data's order."""

import logging
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optaxtricks as ot
from optaxtricks._core import tap_files
from tests.nn.tap_data import (
    DATA,
    PARAMS,
    Loader,
    backbone,
    batches,
    cached,
    expected,
    files,
)
from tests.problems import assert_same


@pytest.mark.parametrize("size", [1, 3, 11, 20])
@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
def test_folder_and_memory_hold_the_taps_bit_for_bit(
    tmp_path, size, block_bytes, monkeypatch
):
    monkeypatch.setattr(tap_files, "BLOCK_BYTES", block_bytes)
    want = expected(size)
    for cache in (
        cached(stream=batches(size)),
        cached(tmp_path / "new" / "folder", batches(size)),
        ot.nn.TapCache.open(tmp_path / "new" / "folder"),
        cached(stream=DATA, batch_size=size),
    ):
        assert len(cache) == 11
        assert_same(cache[:], want)
        assert cache.nbytes == sum(x.nbytes for x in jax.tree.leaves(want))


@pytest.mark.parametrize("in_folder", [False, True])
def test_rows(tmp_path, in_folder):
    cache, want = cached(tmp_path if in_folder else None), expected()
    pick = lambda rows: jax.tree.map(lambda x: x[rows], want)
    for rows in (slice(2, 9, 3), slice(0, 0), np.array([10, 0, 0, -1])):
        assert_same(cache[rows], pick(rows))
    assert_same(cache[[4, 2]], pick(np.array([4, 2])))
    assert_same(cache[jnp.array([4, 2])], pick(np.array([4, 2])))
    assert_same(cache[np.arange(11) > 8], pick(np.arange(11) > 8))
    assert_same(cache[[]], pick(slice(0, 0)))
    assert_same(cache[5], pick(5))
    for row, taps in enumerate(cache):
        assert_same(taps, pick(row))
    assert row == 10
    for leaf in jax.tree.leaves(cache[[0, 3]]):
        assert type(leaf) is np.ndarray
    with pytest.raises(IndexError):
        cache[[11]]
    for bad in ([0.5], "a", (1, [2]), [[0]], np.zeros((2, 2), bool)):
        with pytest.raises((TypeError, ValueError)):
            cache[bad]
    with pytest.raises(ValueError, match="read-only"):
        cache[:]["taps"][0][0] = 1


def test_repr_shows_what_is_stored():
    shown = "TapCache(int32[11], float32[11, 5], bfloat16[11, 1, 3]; 330 bytes)"
    assert repr(cached()) == shown


def test_every_kind_of_stream(tmp_path):
    loader = Loader(batches())
    assert_same(cached(tmp_path, loader)[:], expected())
    assert loader.readings == 2
    on_device = [jax.tree.map(jnp.asarray, batch) for batch in batches()]
    for stream in (iter(batches()), (x for x in batches()), on_device):
        assert_same(cached(stream=stream)[:], expected())
    with pytest.raises(TypeError, match="can be read only once, and folder needs"):
        cached(tmp_path, iter(batches()))


def test_few_batches_are_in_memory_at_once(tmp_path):
    references, most = [], []

    class Stream:
        def __iter__(self):
            for i in range(20):
                batch = np.full((2, 3), i, np.float32)
                references.append(weakref.ref(batch))
                yield batch
                del batch
                most.append(sum(x() is not None for x in references))

    run = lambda params, x: x * params
    ot.nn.cache_taps(run, Stream(), params=jnp.float32(2), folder=tmp_path)
    # The first is kept for its shapes, and one waits to be stored.
    assert len(most) == 40 and max(most) <= 4


def test_without_params_the_function_is_called_as_it_is():
    calls = []

    def taps(batch):
        calls.append(type(batch["x"]))
        return backbone(PARAMS, batch)

    cache = ot.nn.cache_taps(taps, batches())
    for got, want in zip(
        jax.tree.leaves(cache[:]), jax.tree.leaves(expected()), strict=True
    ):
        np.testing.assert_allclose(got.astype("f4"), want.astype("f4"), rtol=1e-2)
    # Twice for the shapes, then with the arrays themselves.
    assert len(calls) == 2 + 4 and calls[2:] == [np.ndarray] * 4


def test_parameters_are_an_argument_of_one_program():
    traces = []

    def taps(params, batch):
        traces.append(type(params["a"]))
        return backbone(params, batch)

    ot.nn.cache_taps(taps, batches(), params=PARAMS)
    # For the shapes, of 3 and of 6, for batches of 3, and for the last one of 2.
    assert len(traces) == 4 and all(issubclass(t, jax.core.Tracer) for t in traces[2:])


def test_nnx_state_with_dropout_keys(tmp_path):
    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.layer = nnx.Linear(4, 5, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, batch):
            h = self.layer(batch["x"])
            return h, self.dropout(h)

    net = Net()
    net.eval()
    graph, state = nnx.split(net)
    run = lambda state, batch: nnx.merge(graph, state)(batch)
    cache = ot.nn.cache_taps(run, batches(), params=state, folder=tmp_path)
    h, dropped = cache[:]
    np.testing.assert_array_equal(h, dropped)
    assert cache[:2][0].shape == (2, 5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, "float32"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_storage_dtype(tmp_path, dtype, in_folder):
    cache = cached(tmp_path if in_folder else None, dtype=dtype)
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
    assert_same(cache[:], jax.tree.map(cast, expected()))


def test_a_tap_that_overflows_the_dtype_is_refused(tmp_path):
    run = lambda params, x: {"h": x * params}
    data, big = np.array([1.0, np.inf, 7e4], np.float32), jnp.float32(1)
    for folder in (None, tmp_path):
        with pytest.raises(ValueError, match="'h' has finite numbers too large for"):
            ot.nn.cache_taps(
                run, data, params=big, dtype=jnp.float16, folder=folder, batch_size=2
            )
    cache = ot.nn.cache_taps(run, data[:2], params=big, dtype=jnp.float16)
    assert cache[1]["h"] == np.inf


def test_zero_size_taps(tmp_path):
    run = lambda params, x: (x[:, :0], x * params)
    cache = ot.nn.cache_taps(
        run, np.ones((3, 2), "f4"), params=jnp.float32(2), folder=tmp_path
    )
    assert cache[:][0].shape == (3, 0) and cache[[1]][1].tolist() == [[2, 2]]


def test_the_size_is_known_before_anything_runs(caplog, monkeypatch, tmp_path):
    ran = []

    def taps(params, x):
        jax.debug.callback(lambda: ran.append(1))
        return jnp.zeros((x.shape[0], 10**6))

    with caplog.at_level(logging.INFO):
        cached()
    assert "Caching taps (330 bytes) in memory" in caplog.text
    usage = type("usage", (), {"free": 10**7})
    monkeypatch.setattr(tap_files.shutil, "disk_usage", lambda _: usage)
    message = "caching these taps needs 12 MB more, but the disk .* has 10 MB free"
    with pytest.raises(OSError, match=message):
        ot.nn.cache_taps(taps, np.ones((3, 1)), params=PARAMS, folder=tmp_path)
    assert not ran
    # With room the same folder serves.
    monkeypatch.undo()
    cache = ot.nn.cache_taps(taps, np.ones((3, 1)), params=PARAMS, folder=tmp_path)
    assert cache.nbytes == 3 * 4 * 10**6


def test_ragged_lengths_are_fine_for_taps_that_are_not(tmp_path):
    stream = [np.ones((2, 3), "f4"), np.ones((2, 5), "f4")]
    mean = lambda params, x: (x * params).mean(axis=1)
    cache = ot.nn.cache_taps(mean, stream, params=jnp.float32(2), folder=tmp_path)
    assert cache[:].tolist() == [2] * 4
    message = r"batch 1: the one at '' is float32\[2, 5\] instead of float32\[2, 3\]"
    with pytest.raises(ValueError, match=message):
        ot.nn.cache_taps(lambda x: x, stream)


# Progress


def test_progress_is_silent_but_on_a_terminal(capsys, monkeypatch):
    import rich

    assert_same(cached(progress=True)[:], expected())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(rich.get_console(), "_force_terminal", True)
    cached(progress=True)
    assert "Caching taps (330 bytes)" in capsys.readouterr().out


def test_progress_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"needs rich.*optaxtricks\[demo\]"):
        cached(progress=True)


def test_any_container_in_memory():
    run = lambda params, batch: nnx.State({"h": batch["x"]})
    cache = ot.nn.cache_taps(run, batches(), params=PARAMS)
    assert type(cache[:]) is nnx.State
    np.testing.assert_array_equal(cache[:]["h"], DATA["x"])


def test_a_folder_holds_raw_rows(tmp_path, each_batch_a_block):
    cached(tmp_path)
    leaves = jax.tree.leaves(expected())
    held = files(tmp_path)
    assert set(held) == {"taps.json", "tap_0.bin", "tap_1.bin", "tap_2.bin"}
    for i, leaf in enumerate(leaves):
        assert held[f"tap_{i}.bin"] == leaf.tobytes()
