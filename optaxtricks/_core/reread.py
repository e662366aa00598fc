"""Data that is read twice: once to know it, and once to work on it."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax

from . import checks
from .batches import batches_of, checked_batches
from .fingerprints import StreamDigest, checksum


class Known(NamedTuple):
    """What one reading of the data tells."""

    first: Any
    """The first batch."""
    sizes: list[int]
    """Examples in each batch."""
    sums: list[int]
    """A checksum of each batch."""
    digest: str
    """A digest of all the data, however it is cut into batches."""

    @property
    def examples(self) -> int:
        """Examples in all batches."""
        return sum(self.sizes)

    def again(
        self, batches: Iterable[Any], *, done: int = 0
    ) -> Iterator[tuple[int, int, Any]]:
        """Number, size and rows of the batches, the first `done` examples left out.

        Raises:
          ValueError: the batches are not those that were read the first time.
        """
        known = list(zip(self.sizes, self.sums, strict=True))
        number = -1
        for number, (size, batch) in enumerate(checked_batches(batches)):
            found = size, checksum(batch)
            if known[number : number + 1] != [found]:
                raise ValueError(
                    f"batches: batch {number} is another one the second time; batches "
                    "must come in the same order each time, without shuffling."
                )
            skipped = min(done, size)
            done -= skipped
            if skipped < size:
                rest = jax.tree.map(lambda x, n=skipped: x[n:], batch)
                yield number, size - skipped, rest if skipped else batch
        if number + 1 < len(known):
            raise ValueError(
                f"batches: {len(known)} came the first time, but {number + 1} the "
                "second; it must be possible to read them twice."
            )


class Slices:
    """A big batch as a stream of small ones, which are cut when they are read."""

    def __init__(self, whole: Any, size: int, batch_size: int):
        self._whole, self._batch_size = whole, batch_size
        self._starts = range(0, size, batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in self._starts:
            part = slice(start, start + self._batch_size)
            yield jax.tree.map(lambda x, part=part: x[part], self._whole)


def rereadable(
    batches: Any, batch_size: int | None, *, may_hold: bool
) -> Iterable[Any]:
    """The stream that `batches` stands for, which starts afresh in each reading.

    Raises:
      TypeError: it can be read only once and must not be held in memory.
      ValueError: `batch_size` is given for what is a stream already.
    """
    stream = batches_of(batches)
    if isinstance(stream, Iterator):
        if not may_hold:
            raise TypeError(
                "batches can be read only once, and folder needs them twice: give a "
                "list, an array, or an object whose __iter__ starts afresh."
            )
        stream = list(stream)
    if batch_size is None:
        return stream
    checks.positive_int(batch_size=batch_size)
    if isinstance(batches, list | Iterator) or stream is batches:
        raise ValueError(
            "batch_size cuts one pytree of arrays, but batches is a stream already."
        )
    ((size, whole),) = checked_batches(stream)
    return Slices(whole, size, batch_size)


def known(batches: Iterable[Any]) -> Known:
    """Reads the data the first time."""
    digest, sizes, sums, first = StreamDigest(), [], [], None
    for size, batch in checked_batches(batches):
        first = batch if first is None else first
        sizes.append(size)
        sums.append(checksum(batch))
        digest.add(batch)
    return Known(first, sizes, sums, digest.hexdigest())
