"""Caching that fills the disk: what it says, and that it goes on when there is room."""

import errno
import io
import os

import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from optaxtricks._core import tap_files, tap_manifest
from tests.nn.tap_data import cached, expected, files, rows_on_record, start, wide
from tests.problems import assert_same

pytestmark = pytest.mark.usefixtures("each_batch_a_block")

LIMITED = """
    import resource, sys
    import jax.numpy as jnp
    import numpy as np
    import optaxtricks as ot
    from optaxtricks._core import tap_files
    from tests.nn.tap_data import wide
    tap_files.BLOCK_BYTES = 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
    data = np.arange(12, dtype="f4")
    try:
        ot.nn.cache_taps(
            wide, data, params=jnp.float32(2), batch_size=2, folder=sys.argv[1]
        )
    except OSError as error:
        print(error.errno, error)
"""


def test_a_limit_on_the_size_of_files(tmp_path):
    with start(LIMITED, tmp_path) as process:
        out, error = process.communicate(timeout=100)
    assert out.startswith(f"{errno.EFBIG} "), error
    assert f"the taps in {str(tmp_path)!r} need 4.8 kB in all" in out
    assert "4 of 12 examples are stored; make room and call again" in out
    assert (tmp_path / "tap_0.bin").stat().st_size == 2048  # 1600 of them count
    data = np.arange(12, dtype="f4")
    cache = ot.nn.cache_taps(
        wide, data, params=jnp.float32(2), batch_size=2, folder=tmp_path
    )
    np.testing.assert_array_equal(cache[:], np.repeat(2 * data[:, None], 100, axis=1))


@pytest.mark.parametrize("room", [0, 1, 100, 329])
def test_a_disk_that_takes_only_so_many_bytes(tmp_path, whole, room):
    class Disk(io.FileIO):
        left = room

        def write(self, data):
            if not Disk.left:
                raise OSError(errno.ENOSPC, "No space left on device")
            # A part of it, as the system may do at any time.
            taken = super().write(data[: min(7, Disk.left)])
            Disk.left -= taken
            return taken

    folder = tmp_path / "cache"
    with pytest.MonkeyPatch.context() as patch:
        unbuffered = lambda path, mode="r", buffering=-1: (
            Disk(path, mode) if buffering == 0 else open(path, mode)
        )
        patch.setattr(tap_files, "open", unbuffered, raising=False)
        with pytest.raises(OSError, match=r"the disk is full: .* 330 bytes in all"):
            cached(folder)
        assert rows_on_record(folder) == room // 90 * 3
        Disk.left = 1000
        assert_same(cached(folder)[:], expected())
    assert files(folder) == whole


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_no_space_left(tmp_path, whole, name, number):
    folder, real, calls = tmp_path / "cache", getattr(os, name), []

    def full(*args):
        calls.append(args)
        if len(calls) >= number:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, full)
        with pytest.raises(
            OSError, match=r"the disk is full: .* 330 bytes in all"
        ) as e:
            cached(folder)
    assert e.value.errno == errno.ENOSPC
    stored = int(str(e.value).split(" of 11 examples")[0].split()[-1])
    with pytest.raises(ValueError, match=r"unfinished|no cache"):
        ot.nn.TapCache.open(folder)
    found = tap_manifest.load(folder)
    assert stored == (found.rows if found else 0)
    assert_same(cached(folder)[:], expected())
    assert files(folder) == whole


def test_other_disk_errors_keep_their_words(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken") as caught:
        cached(tmp_path)
    assert caught.value.errno == errno.EIO
