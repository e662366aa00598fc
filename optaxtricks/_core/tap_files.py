"""Taps on disk: one file a tap, rows appended, and read back through a memory map."""

import contextlib
import dataclasses
import errno
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import tap_manifest
from .fingerprints import as_bytes
from .tap_manifest import Block, Manifest, Spec, damaged

# A killed run loses at most so many bytes, or so many seconds, of work.
BLOCK_BYTES = 64 << 20
BLOCK_SECONDS = 30.0

_CHUNK = 8 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class TapWriter:
    """Appends rows to the taps of a folder, in blocks that are all or nothing.

    A block counts once its bytes are on disk and the manifest, replaced after that,
    lists it. What stands in the files beyond the listed blocks is cut off when an
    unfinished folder is taken up again. Rows go through `write`: a full disk fails it
    with an error, but kills a process that writes through a memory map.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self.manifest = manifest
        self._folder = folder
        self._files: list[BinaryIO] = []
        self._lock: BinaryIO | None = None
        self._start_block()

    def __enter__(self) -> "TapWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = _locked(self._folder)
            self._go_on()
            with self._disk_errors():
                if not self.manifest.blocks:
                    tap_manifest.save(self.manifest, self._folder)
                for i, tap in enumerate(self.manifest.taps):
                    file = open(_file(self._folder, i), "ab", buffering=0)
                    self._files.append(file)
                    file.truncate(self.manifest.rows * tap.row_bytes)
            self._check_room()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        for file in self._files:
            file.close()
        if self._lock is not None:
            self._lock.close()

    def append(self, taps: Sequence[np.ndarray]) -> None:
        """Writes the taps of some more examples."""
        with self._disk_errors():
            for i, tap in enumerate(taps):
                data = as_bytes(tap)
                self._checks[i] = zlib.crc32(data, self._checks[i])
                while data:
                    data = data[self._files[i].write(data) :]
        self._rows += len(taps[0])
        self._bytes += sum(tap.nbytes for tap in taps)
        late = time.monotonic() - self._since >= BLOCK_SECONDS
        if self._bytes >= BLOCK_BYTES or late:
            self._commit()

    def finish(self) -> None:
        """Records that all examples are there."""
        self._commit()
        if self.manifest.rows != self.manifest.examples:
            raise RuntimeError("taps were finished before all examples were written")
        with self._disk_errors():
            record = dataclasses.replace(self.manifest, complete=True)
            tap_manifest.save(record, self._folder)
            self.manifest = record

    def _go_on(self) -> None:
        """Takes up what an earlier run left, read only now that none can be running."""
        found = tap_manifest.load(self._folder)
        if found is not None:
            found.reject_other(self.manifest, self._folder)
            verify(self._folder, found)
            self.manifest = found

    def _start_block(self) -> None:
        self._rows = self._bytes = 0
        self._checks = [0] * len(self.manifest.taps)
        self._since = time.monotonic()

    def _commit(self) -> None:
        if not self._rows:
            return
        with self._disk_errors():
            for file in self._files:
                os.fsync(file.fileno())
            block = Block(self._rows, tuple(self._checks))
            blocks = [*self.manifest.blocks, block]
            record = dataclasses.replace(self.manifest, blocks=blocks)
            tap_manifest.save(record, self._folder)
            self.manifest = record
        self._start_block()

    def _check_room(self) -> None:
        done = self.manifest.rows * sum(tap.row_bytes for tap in self.manifest.taps)
        needed = self.manifest.nbytes - done
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"caching these taps needs {size_text(needed)} more, but the disk of "
                f"{str(self._folder)!r} has {size_text(free)} free; try a smaller "
                "dtype or another folder",
            )

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(
                error.errno,
                f"the disk is full: the taps in {str(self._folder)!r} need "
                f"{size_text(self.manifest.nbytes)} in all. "
                f"{self.manifest.rows} of {self.manifest.examples} examples are "
                "stored; make room and call again to go on from there, or delete "
                "the folder",
            ) from error


def verify(folder: Path, manifest: Manifest, *, checksums: bool = True) -> None:
    """Rejects files that do not hold what the manifest says they hold."""
    for i, tap in enumerate(manifest.taps):
        file = _file(folder, i)
        size = file.stat().st_size if file.exists() else 0
        wanted = manifest.rows * tap.row_bytes
        # Beyond the last block an unfinished file may hold what a kill left there.
        if size < wanted or (manifest.complete and size > wanted):
            raise damaged(file, f"holds {size} bytes instead of {wanted}")
        if checksums and wanted:
            _verify_blocks(file, i, tap, manifest.blocks)


def arrays(folder: Path, manifest: Manifest) -> list[np.ndarray]:
    """Read-only memory maps of the taps."""
    return [_mapped(folder, i, manifest) for i in range(len(manifest.taps))]


def size_text(count: int) -> str:
    """A number of bytes for people."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    power = min(int(math.log(max(count, 1), 1000)), len(units) - 1)
    return f"{count / 1000**power:.4g} {units[power]}"


def _file(folder: Path, number: int) -> Path:
    return folder / f"tap_{number}.bin"


def _mapped(folder: Path, number: int, manifest: Manifest) -> np.ndarray:
    tap = manifest.taps[number]
    shape, dtype = (manifest.examples, *tap.shape), np.dtype(tap.dtype)
    if not manifest.examples * tap.row_bytes:  # nothing to map
        empty = np.empty(shape, dtype)
        empty.flags.writeable = False
        return empty
    return np.asarray(np.memmap(_file(folder, number), dtype, mode="r", shape=shape))


def _verify_blocks(file: Path, number: int, tap: Spec, blocks: Sequence[Block]) -> None:
    with open(file, "rb") as stream:
        first = 0
        for block in blocks:
            left, check = block.rows * tap.row_bytes, 0
            while left:
                data = stream.read(min(left, _CHUNK))
                if not data:
                    raise damaged(file, "ended while it was read")
                check, left = zlib.crc32(data, check), left - len(data)
            if check != block.checks[number]:
                raise damaged(
                    file,
                    f"does not have the checksum of examples {first} to "
                    f"{first + block.rows - 1}",
                )
            first += block.rows


def _locked(folder: Path) -> BinaryIO | None:
    """Keeps a second process out until the file is closed or its owner dies."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return None
    file = open(folder / tap_manifest.LOCK, "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"another process is caching taps in {str(folder)!r}; wait for it."
        ) from None
    except OSError:  # a file system without locks
        pass
    return file
