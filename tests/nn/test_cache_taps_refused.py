"""Folders that `cache_taps` must not believe: stale, damaged, or something else."""

import json
import zlib

import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from optaxtricks._core import tap_files
from tests.nn.tap_data import (
    DATA,
    PARAMS,
    Dies,
    Killed,
    backbone,
    batches,
    cached,
    expected,
    files,
    wide,
)
from tests.problems import assert_same

pytestmark = pytest.mark.usefixtures("each_batch_a_block")

# Stale


OTHER = PARAMS | {"a": PARAMS["a"].at[0, 0].add(1e-6)}
SHOWN = "(stored 'id/0' int32[], 'taps/0' float32[5], 'taps/1' bfloat16[1, 3], now "


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"params": OTHER}, ["the parameters"]),
        ({"params": PARAMS | {"c": 1.0}}, ["the parameters"]),
        ({"params": {"a": PARAMS["a"], "c": PARAMS["b"]}}, ["the parameters"]),
        ({"stream": batches()[:-1]}, ["the data"]),
        ({"stream": batches()[::-1]}, ["the data"]),
        ({"stream": [batches()[0], *batches()]}, ["the data"]),
        ({"dtype": jnp.float16}, ["the taps"]),
        ({"params": OTHER, "stream": batches()[:1]}, ["the parameters", "the data"]),
    ],
)
def test_stale_caches_are_refused_by_name(tmp_path, finished, change, named):
    if finished:
        cached(tmp_path)
    else:
        with pytest.raises(Killed):
            cached(tmp_path, Dies(3))
    before = files(tmp_path)
    lenient = lambda params, batch: backbone(
        {"b": params.get("b", PARAMS["b"]), **params}, batch
    )
    arguments = {"stream": batches(), "params": PARAMS} | change
    with pytest.raises(ValueError, match="is stale: ") as caught:
        ot.nn.cache_taps(lenient, arguments.pop("stream"), folder=tmp_path, **arguments)
    text = str(caught.value)
    assert [x for x in ("the parameters", "the data", "the taps") if x in text] == named
    assert named != ["the taps"] or SHOWN in text
    assert files(tmp_path) == before
    assert_same(cached(tmp_path)[:], expected())


def test_taps_in_other_containers_are_other_taps(tmp_path):
    run = lambda kind: ot.nn.cache_taps(
        lambda params, x: kind([x * params, x]),
        np.ones(3, "f4"),
        params=jnp.float32(1),
        folder=tmp_path,
    )
    assert type(run(tuple)[:]) is tuple
    with pytest.raises(ValueError, match="is stale: the containers of the taps differ"):
        run(list)


def test_other_batches_of_the_same_data_are_the_same_data(tmp_path):
    cached(tmp_path)
    before = files(tmp_path)
    cached(tmp_path, batches(4))
    cached(tmp_path, DATA, batch_size=5)
    assert files(tmp_path) == before


def test_a_finished_cache_is_not_computed_again(tmp_path, monkeypatch):
    cached(tmp_path)
    before = files(tmp_path)
    monkeypatch.setattr(tap_files, "TapWriter", None)
    assert_same(cached(tmp_path)[:], expected())
    assert files(tmp_path) == before


# Damaged


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit(tmp_path, number, place):
    cached(tmp_path)
    path = tmp_path / f"tap_{number}.bin"
    held = bytearray(path.read_bytes())
    held[place] ^= 16
    path.write_bytes(held)
    rows = "0 to 2" if place == 0 else "9 to 10"
    message = rf"tap_{number}.bin' does not have the checksum of examples {rows}"
    for open_again in (ot.nn.TapCache.open, cached):
        with pytest.raises(ValueError, match=message):
            open_again(tmp_path)
    # Only sizes are looked at.
    assert len(ot.nn.TapCache.open(tmp_path, verify=False)) == 11


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone"])
def test_files_of_another_size(tmp_path, damage):
    cached(tmp_path)
    path = tmp_path / "tap_1.bin"
    held = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(held[:-1] if damage == "shorter" else held + b"x")
    size = {"shorter": 219, "longer": 221, "gone": 0}[damage]
    message = f"tap_1.bin' holds {size} bytes instead of 220"
    for open_again in (
        ot.nn.TapCache.open,
        cached,
        lambda folder: ot.nn.TapCache.open(folder, verify=False),
    ):
        with pytest.raises(ValueError, match=message):
            open_again(tmp_path)


def test_an_unfinished_cache_is_not_gone_on_with_if_it_is_damaged(tmp_path):
    with pytest.raises(Killed):
        cached(tmp_path, Dies(3))
    path = tmp_path / "tap_0.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    before = files(tmp_path)
    with pytest.raises(ValueError, match="does not have the checksum of examples 0 to"):
        cached(tmp_path)
    # It is seen before anything is computed.
    assert files(tmp_path) == before


def test_a_damaged_manifest(tmp_path):
    cached(tmp_path)
    path = tmp_path / "taps.json"
    held = path.read_text()
    for bad in ("", held[:-9], "[]", "{}", held.replace("complete", "Complete")):
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"the cache is damaged: .*taps.json"):
            cached(tmp_path)
    path.write_text(held.replace("taps 1", "taps 3"))
    with pytest.raises(ValueError, match="has format 'optaxtricks taps 3', this reads"):
        ot.nn.TapCache.open(tmp_path)


def test_every_flipped_bit_of_the_manifest(tmp_path):
    ot.nn.cache_taps(wide, np.ones(2, "f4"), params=jnp.float32(1), folder=tmp_path)
    path = tmp_path / "taps.json"
    held = path.read_bytes()
    for place in range(0, len(held), 3):
        path.write_bytes(held[:place] + bytes([held[place] ^ 1]) + held[place + 1 :])
        with pytest.raises(ValueError, match=r"the cache is damaged|has format"):
            ot.nn.TapCache.open(tmp_path)


# Foreign folders


def test_folders_that_are_no_cache(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"x")
    (tmp_path / "a").mkdir()
    message = "is not empty and is no cache of taps: it holds 'a', 'photo.png'"
    with pytest.raises(ValueError, match=message):
        cached(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "photo.png"]
    with pytest.raises(ValueError, match=r"photo.png' is a file"):
        cached(tmp_path / "photo.png")
    for empty in ("a", "nowhere"):
        with pytest.raises(ValueError, match="holds no cache of taps"):
            ot.nn.TapCache.open(tmp_path / empty)
    assert_same(cached(str(tmp_path / "a"))[:], expected())


def test_the_checksums_are_those_of_zlib(tmp_path):
    cached(tmp_path)
    body = json.loads(json.loads((tmp_path / "taps.json").read_text())["body"])
    held = (tmp_path / "tap_0.bin").read_bytes()
    for block, (rows, checks) in enumerate(body["blocks"]):
        part = held[12 * block : 12 * (block + 1)]
        assert (rows, checks[0]) == (len(part) // 4, zlib.crc32(part))
