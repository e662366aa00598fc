"""Taps of a scanned backbone: all layers in one array, and examples still in order."""

import json
import zlib
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks
from optaxtricks._core import tap_manifest
from tests.nn import tap_data
from tests.nn.tap_data import Dies, Killed, batches, cached, files
from tests.problems import assert_same

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

LAYERS, EXAMPLES, WIDTH = 3, 11, 4
RNG = np.random.default_rng(7)
DATA = RNG.normal(size=(EXAMPLES, 2, WIDTH)).astype("f4")
PARAMS = jnp.asarray(RNG.normal(size=(LAYERS, WIDTH, WIDTH)), jnp.float32)


def scanned(axis=0, dtype=jnp.float32):
    """A backbone that gives its embedding, and its layers in one array."""

    def run(params, x):
        def layer(h, kernel):
            h = jnp.tanh(h @ kernel)
            return h, h.astype(dtype)

        _, layers = jax.lax.scan(layer, x, params)
        return {"embed": x, "layers": jnp.moveaxis(layers, 0, axis)}

    return run


def listed(params, x):
    """The same with a list of layers."""
    taps = [x]
    for kernel in params:
        taps.append(jnp.tanh(taps[-1] @ kernel))
    return {"embed": x, "layers": taps[1:]}


def cache(axis=0, folder=None, size=3, run=None, **how):
    known = {"stacked": {"^layers": axis}, "batch_size": size, **how}
    run = run or scanned(axis)
    return ot.nn.cache_taps(run, DATA, params=PARAMS, folder=folder, **known)


def expected(axis, size, dtype=jnp.float32):
    """Taps of each batch, put together along their axis of examples."""
    parts = [DATA[i : i + size] for i in range(0, EXAMPLES, size)]
    taps = [jax.jit(scanned(axis, dtype))(PARAMS, part) for part in parts]
    join = lambda name, at: np.concatenate([np.asarray(x[name]) for x in taps], at)
    return {"embed": join("embed", 0), "layers": join("layers", 0 if axis else 1)}


# As many layers as examples in a batch, and not.
@pytest.mark.parametrize("size", [3, 4, 11])
@pytest.mark.parametrize("axis", [0, 1, 2, 3])
@pytest.mark.parametrize("in_folder", [False, True])
def test_rows_come_back_as_the_backbone_lays_them_out(tmp_path, in_folder, axis, size):
    folder, want = tmp_path if in_folder else None, expected(axis, size)
    at = 0 if axis else 1
    pick = lambda rows: {
        "embed": want["embed"][rows],
        "layers": np.take(want["layers"], np.arange(EXAMPLES)[rows], at),
    }
    caches = [cache(axis, folder, size)]
    if in_folder:
        caches += [cache(axis, folder, size), ot.nn.TapCache.open(folder)]
    for held in caches:
        assert len(held) == EXAMPLES
        assert_same(held[:], want)
        for rows in (slice(2, 9, 3), slice(0, 0), [10, 0, 0, -1], [], 5):
            known = np.array(rows, int) if isinstance(rows, list) else rows
            assert_same(held[rows], pick(known))
        assert_same(held[np.arange(11) > 8], pick(slice(9, None)))
        assert_same(list(held)[4], pick(4))
        assert held.nbytes == sum(x.nbytes for x in want.values())
        shape = list(want["layers"].shape)
        shown = f"TapCache(float32[11, 2, 4], float32{shape}; "
        assert repr(held).startswith(shown)
        with pytest.raises(ValueError, match="read-only"):
            held[:]["layers"][0, 0] = 1


def test_a_stack_holds_the_taps_of_the_list_of_layers():
    stacks = cache()[:]
    lists = ot.nn.cache_taps(listed, DATA, params=PARAMS, batch_size=3)[:]
    np.testing.assert_allclose(
        stacks["layers"], np.stack(lists["layers"]), rtol=1e-6, atol=1e-6
    )


def test_a_selector_says_axis_zero_and_a_negative_axis_counts_backwards():
    want = cache(0)[:]
    assert_same(cache(0, stacked="^layers")[:], want)
    assert_same(cache(0, stacked={"layers": -4})[:], want)
    without_params = ot.nn.cache_taps(
        lambda x: scanned()(PARAMS, x), DATA, batch_size=3, stacked="^layers"
    )[:]
    np.testing.assert_allclose(without_params["layers"], want["layers"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes(tmp_path, dtype):
    assert_same(
        cache(run=scanned(0, dtype))[:],
        expected(0, 3, dtype),
    )
    small = cache(folder=tmp_path, dtype=dtype)[:]
    assert_same(small, jax.tree.map(lambda x: x.astype(dtype), expected(0, 3)))


def test_true_is_no_row():
    for held in (cache(), cached()):
        for row in (True, np.bool_(False)):
            with pytest.raises(TypeError, match="rows of a TapCache must be"):
                held[row]


# Nothing is taken for examples that counts layers


def test_as_many_layers_as_examples_are_no_examples():
    taps = lambda batch: {"ys": jnp.zeros((3, batch.shape[0], 4))}
    message = (
        r"the tap at 'ys' shape \(3, 3, 4\) for 3 examples and \(3, 6, 4\) for 6, so "
        r"its axis 0 does not count examples. If it counts layers, .* in stacked="
    )
    with pytest.raises(ValueError, match=message):
        ot.nn.cache_taps(taps, jnp.ones((6, 2)), batch_size=3)
    held = ot.nn.cache_taps(taps, jnp.ones((6, 2)), batch_size=3, stacked="ys")
    assert held[:]["ys"].shape == (3, 6, 4)


def test_a_tap_that_counts_nothing_of_the_batch_is_no_tap_of_examples():
    for folder in (None, "nowhere"):
        with pytest.raises(
            ValueError, match=r"tap at 'layers' shape \(3, 4, 4\) for 3"
        ):
            cache(run=lambda p, x: {"layers": p}, folder=folder, stacked=None)


@pytest.mark.parametrize(
    ("tap", "stacked", "message"),
    [
        (lambda x: x, "", r"\(3, 3\) for 3 .* \(6, 3\) for 6, so its axis 1 does not"),
        (
            lambda x: x[:, :2],
            "",
            r"shape \(3, 2\), but with layers on axis 0 its axis 1",
        ),
        (lambda x: x[:, 0], "", r"shape \(3,\), but with layers on axis 0 its axis 1"),
        (lambda x: x @ x.T, "", r"\(6, 6\) for 6, so its axis 0 does not count layers"),
        (lambda x: x[:2], {"": 1}, r"layers on axis 1 its axis 0 must count the 3 ex"),
        (lambda x: x, {"": 2}, r"has shape \(3, 3\) and so no layer axis 2"),
        (lambda x: x[:2], None, "leading axis must count the 3 .* name the tap in st"),
    ],
)
def test_stacks_that_are_none(tap, stacked, message):
    with pytest.raises(ValueError, match=message):
        ot.nn.cache_taps(tap, jnp.ones((6, 3)), batch_size=3, stacked=stacked)


def rigid(sizes):
    """A backbone that is made for batches of these sizes alone."""

    def taps(x):
        if x.shape[0] not in sizes:
            raise RuntimeError("compiled for another batch")
        return {"ys": jnp.zeros((3, x.shape[0], 4)) + x[None, :, :1]}

    return taps


def test_a_rigid_backbone_is_seen_through_by_its_last_batch():
    message = (
        r"\(3, 3, 4\) for 3 examples and \(3, 2, 4\) for 2, so its axis 0 does not"
    )
    with pytest.raises(ValueError, match=message):
        ot.nn.cache_taps(rigid([3, 2]), jnp.ones((5, 2)), batch_size=3)
    held = ot.nn.cache_taps(
        rigid([3, 2]), jnp.arange(10.0).reshape(5, 2), batch_size=3, stacked="ys"
    )
    assert held[:]["ys"][2, :, 1].tolist() == [0, 2, 4, 6, 8]


def test_a_rigid_backbone_of_one_size_is_believed():
    data = jnp.ones((6, 2))
    plain = lambda x: rigid([3])(x)["ys"].sum(axis=(0, 2))
    assert ot.nn.cache_taps(plain, data, batch_size=3)[:].tolist() == [12] * 6
    held = ot.nn.cache_taps(rigid([3]), data, batch_size=3, stacked="ys")
    assert held[:]["ys"].shape == (3, 6, 4)


def test_in_batch_similarities_are_still_taps():
    similar = lambda x: x @ x.T
    held = ot.nn.cache_taps(similar, jnp.eye(6), batch_size=3)
    np.testing.assert_array_equal(held[:], np.concatenate([np.eye(3)] * 2))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_batches_over_devices(kind):
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,))
    data, there = DATA[:8], NamedSharding(mesh, P("batch"))
    stream = [jax.device_put(x, there) for x in (data[:4], data[4:])]
    double = lambda params, x: {"ys": jnp.stack([x * params] * 4)}
    if kind is AxisType.Auto:
        keep = NamedSharding(mesh, P(None, "batch"))
        run = lambda p, x: jax.lax.with_sharding_constraint(double(p, x), keep)
    else:
        run = double
    two = jax.device_put(jnp.float32(2), NamedSharding(mesh, P()))
    with jax.set_mesh(mesh):
        held = ot.nn.cache_taps(run, stream, params=two, stacked="ys")
        with pytest.raises(ValueError, match=r"\(4, 8, 2, 4\) for 8, so its axis 0 d"):
            ot.nn.cache_taps(run, stream, params=two)
    np.testing.assert_array_equal(held[:]["ys"], np.stack([2 * data] * 4))


# Folders


def test_a_folder_made_with_another_stacked_is_refused(tmp_path):
    # As many examples in the data as layers: both layouts store the same shapes.
    square = lambda params, x: {"ys": jnp.zeros((3, 3)) + params}
    data = np.zeros((3, 2), np.float32)

    def run(params, x):  # for one size alone, so that it is believed
        if x.shape[0] != 3:
            raise RuntimeError
        return square(params, x)

    make = lambda **how: ot.nn.cache_taps(
        run, data, params=jnp.float32(1), folder=tmp_path, **how
    )
    make()
    before = files(tmp_path)
    message = (
        r"is stale: the taps \(stored 'ys' float32\[3\], now 'ys' float32\[3, "
        r"examples\]\) differ"
    )
    with pytest.raises(ValueError, match=message):
        make(stacked="ys")
    # With layers behind the examples all is where it was.
    make(stacked={"ys": 1})
    assert files(tmp_path) == before


def test_a_stack_of_another_axis_is_another_cache(tmp_path):
    cache(0, tmp_path)
    with pytest.raises(
        ValueError, match=r"is stale: the taps .*float32\[3, examples, 2"
    ):
        cache(1, tmp_path)


def test_an_interrupted_folder_goes_on(tmp_path, each_batch_a_block):
    def run(params, batch):
        return {"ys": jnp.stack([batch["x"] @ params["a"]] * 3)}

    make = lambda folder, stream: ot.nn.cache_taps(
        run, stream, params=tap_data.PARAMS, folder=folder, stacked="ys"
    )
    with pytest.raises(Killed):
        make(tmp_path / "cache", Dies(3))
    held = make(tmp_path / "cache", batches())
    assert_same(held[:], make(tmp_path / "whole", batches())[:])
    assert files(tmp_path / "cache") == files(tmp_path / "whole")
    assert held[:]["ys"].shape == (3, 11, 5)


def test_folders_without_stacks_are_written_and_read_as_ever(tmp_path):
    cached(tmp_path)
    path = tmp_path / tap_manifest.NAME
    record = json.loads(path.read_text())
    assert record["format"] == "optaxtricks taps 1"
    body = json.loads(record["body"])
    assert body["taps"] == [
        ["id/0", "int32", []],
        ["taps/0", "float32", [5]],
        ["taps/1", "bfloat16", [1, 3]],
    ]
    assert record["check"] == zlib.crc32(record["body"].encode())
    before = files(tmp_path)
    assert_same(ot.nn.TapCache.open(tmp_path)[:], tap_data.expected())
    cached(tmp_path)
    assert files(tmp_path) == before


def test_a_folder_with_a_stack_says_so_in_its_format(tmp_path):
    cache(0, tmp_path)
    record = json.loads((tmp_path / tap_manifest.NAME).read_text())
    assert record["format"] == "optaxtricks taps 2"
    assert json.loads(record["body"])["taps"] == [
        ["embed", "float32", [2, 4], 0],
        ["layers", "float32", [3, 2, 4], 1],
    ]
