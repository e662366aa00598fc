"""Caching that is killed, at every stage, and goes on from there."""

import os
import signal
import time

import numpy as np
import pytest

import optaxtricks as ot
from optaxtricks._core import tap_files, tap_manifest
from tests.nn.tap_data import (
    PARAMS,
    Dies,
    Killed,
    backbone,
    batches,
    cached,
    expected,
    files,
    rows_on_record,
    start,
)
from tests.problems import assert_same

pytestmark = pytest.mark.usefixtures("each_batch_a_block")

# Killed at every stage


def go_on(folder, stored):
    """Calls again, and counts that nothing stored is computed again."""
    rows, real = [], tap_files.TapWriter.append
    with pytest.MonkeyPatch.context() as patch:
        spy = lambda self, taps: (rows.append(len(taps[0])), real(self, taps))[1]
        patch.setattr(tap_files.TapWriter, "append", spy)
        assert_same(cached(folder)[:], expected())
    assert sum(rows) == 11 - stored


@pytest.mark.parametrize("number", range(4))
def test_the_data_stop_coming(tmp_path, whole, number):
    # The batch before is still waiting to be stored.
    folder, stored = tmp_path / "cache", 3 * max(0, number - 1)
    with pytest.raises(Killed):
        cached(folder, Dies(number))
    assert rows_on_record(folder) == stored
    with pytest.raises(ValueError, match=f"unfinished: {stored} of 11 examples"):
        ot.nn.TapCache.open(folder)
    go_on(folder, stored)
    assert files(folder) == whole


def test_the_backbone_raises(tmp_path, whole):
    def run(params, batch):
        if batch["x"].shape[0] == 2:  # the last one
            raise Killed
        return backbone(params, batch)

    with pytest.raises(Killed):
        ot.nn.cache_taps(run, batches(), params=PARAMS, folder=tmp_path / "cache")
    go_on(tmp_path / "cache", stored=6)
    assert files(tmp_path / "cache") == whole


def calls_of(patch, owner, name, counts):
    """Counts the calls of a function, and dies at a given one, before or after it."""
    real = getattr(owner, name)

    def spy(*args, **kwargs):
        counts["now"] += 1
        if counts["now"] == counts["before"]:
            raise Killed
        result = real(*args, **kwargs)
        if counts["now"] == counts["after"]:
            raise Killed
        return result

    patch.setattr(owner, name, spy)


@pytest.mark.parametrize(
    ("name", "when"),
    [
        ("fsync", "before"),
        pytest.param("replace", "before", marks=pytest.mark.slow),
        pytest.param("replace", "after", marks=pytest.mark.slow),
    ],
)
def test_every_call_that_reaches_the_disk(tmp_path, whole, name, when):
    """Dies at each flush and each rename in turn, until there is none left."""
    for number in range(1, 99):
        folder = tmp_path / f"{number}"
        counts = {"now": 0, "before": 0, "after": 0, when: number}
        with pytest.MonkeyPatch.context() as patch:
            calls_of(patch, os, name, counts)
            try:
                cached(folder)
                break
            except Killed:
                pass
        found = tap_manifest.load(folder)
        if found is None or not found.complete:
            with pytest.raises(ValueError, match=r"unfinished|no cache of taps"):
                ot.nn.TapCache.open(folder)
        assert_same(cached(folder)[:], expected())
        assert files(folder) == whole
    # 4 blocks of 3 taps, with a manifest before, after each and at the end.
    assert number > {"fsync": 12 + 6, "replace": 6}[name]


def test_taps_are_flushed_before_the_manifest_counts_them(tmp_path):
    events = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fsync", "replace"):
            real = getattr(os, name)
            spy = lambda *args, real=real, name=name: (events.append(name), real(*args))
            patch.setattr(os, name, spy)
        cached(tmp_path)
    manifest = ["fsync", "replace", "fsync"]  # its bytes, its name, the folder
    block = ["fsync"] * 3 + manifest
    assert events == manifest + 4 * block + manifest


def test_half_a_row_is_cut_off(tmp_path, whole):
    folder = tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patch:
        # The third batch's second tap.
        counts = {"now": 0, "before": 3 * 2 + 2, "after": 0}
        calls_of(patch, tap_files, "as_bytes", counts)
        with pytest.raises(Killed):
            cached(folder)
    held = files(folder)
    assert len(held["tap_0.bin"]) == 4 * 9 and len(held["tap_1.bin"]) == 20 * 6
    with open(folder / "tap_1.bin", "ab") as file:
        file.write(b"half a row")
    assert_same(cached(folder)[:], expected())
    assert files(folder) == whole


SCRIPT = """
    import sys, time
    import jax
    from optaxtricks._core import tap_files
    from tests.nn.tap_data import backbone, cached, batches
    tap_files.BLOCK_BYTES = 1

    class Slow:
        readings = 0
        def __iter__(self):
            self.readings += 1
            for i, batch in enumerate(batches()):
                if self.readings == 2 and i == 3:
                    print("ready", flush=True)
                    time.sleep(60)
                yield batch

    cached(sys.argv[1], Slow())
"""


def test_a_process_that_is_killed(tmp_path, whole):
    folder = tmp_path / "cache"
    with start(SCRIPT, folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # As long as it lives, nobody else writes here.
        with pytest.raises(ValueError, match="another process is caching taps in"):
            cached(folder)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert rows_on_record(folder) == 6
    assert_same(cached(folder)[:], expected())
    assert files(folder) == whole


def test_going_on_with_other_batches(tmp_path):
    with pytest.raises(Killed):
        cached(tmp_path, Dies(3))
    assert rows_on_record(tmp_path) == 6
    got, want = cached(tmp_path, batches(5))[:], expected()
    np.testing.assert_array_equal(got["id"][0], want["id"][0])
    np.testing.assert_allclose(got["taps"][0], want["taps"][0], rtol=1e-6)


def test_slow_batches_are_stored_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(tap_files, "BLOCK_BYTES", 1 << 30)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    cached(tmp_path)
    found = tap_manifest.load(tmp_path)
    assert found is not None and 1 < len(found.blocks) < 4
