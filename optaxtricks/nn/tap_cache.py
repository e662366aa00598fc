"""Taps of a whole data set, looked up by example."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._core import checks, tap_files, tap_manifest


class TapCache:
    """The taps of each example of a data set, made by :func:`cache_taps`.

    ``cache[rows]`` gives the taps of some examples, in the containers and the layout
    in which the backbone gave them, as NumPy arrays with an axis for ``rows``, the
    leading one but behind a leading axis of layers. Rows are a slice (the arrays are
    then views), integers or bools in one axis (copies), or one integer (without the
    axis). Examples count from 0 in the order of the data; ``len(cache)``
    is their number, and iteration gives the taps of one after the other. Arrays are
    read-only where they are views of the cache.

    Raises:
      TypeError: when indexed, by anything else.
      IndexError: when indexed, by an example that is not there.

    Examples:
      >>> import numpy as np
      >>> import optaxtricks as ot
      >>> cache = ot.nn.cache_taps(lambda x: (x + 1, -x), np.arange(4.0))
      >>> len(cache), [tap.tolist() for tap in cache[np.array([3, 1])]]
      (4, [[4.0, 2.0], [-3.0, -1.0]])
    """

    def __init__(self, arrays: list[np.ndarray], structure: Any, axes: list[int]):
        self._arrays, self._structure, self._axes = arrays, structure, axes

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> "TapCache":
        """Opens a finished cache without backbone, parameters or data.

        Args:
          folder: as given to :func:`cache_taps`.
          verify: read everything once and compare checksums. Without it only the
            sizes of the files are looked at.

        Returns:
          The cache, as read-only memory maps.

        Raises:
          ValueError: no cache there, an unfinished one, or a damaged one.
          TypeError: ``folder`` is no path.
        """
        checks.path(folder=folder)
        folder = Path(folder)
        manifest = tap_manifest.load(folder)
        if manifest is None:
            raise ValueError(f"folder {str(folder)!r} holds no cache of taps.")
        if not manifest.complete:
            raise ValueError(
                f"the cache in {str(folder)!r} is unfinished: {manifest.rows} of "
                f"{manifest.examples} examples. Call cache_taps again to go on."
            )
        tap_files.verify(folder, manifest, checksums=verify)
        arrays = tap_files.arrays(folder, manifest)
        axes = [tap.axis for tap in manifest.taps]
        return cls(arrays, tap_manifest.structure_of(manifest.layout), axes)

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __getitem__(self, rows: Any) -> Any:
        if not isinstance(rows, slice):
            try:
                rows = np.asarray(rows)
            except ValueError:  # lists of different lengths
                rows = np.array(None)
            if rows.size == 0:
                rows = rows.astype(np.intp)
            wrong = rows.dtype.kind not in ("iub" if rows.ndim else "iu")
            if wrong or rows.ndim > 1:
                raise TypeError(
                    "rows of a TapCache must be a slice, an int, or a list or array of "
                    f"ints or bools in one axis, got {rows!r}."
                )
        taps = [tap[rows] for tap in self._arrays]
        if isinstance(rows, slice) or rows.ndim:
            pairs = zip(taps, self._axes, strict=True)
            taps = [np.moveaxis(tap, 0, axis) if axis else tap for tap, axis in pairs]
        return jax.tree.unflatten(self._structure, taps)

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        pairs = zip(self._arrays, self._axes, strict=True)
        shapes = [(x.dtype, tap_manifest.as_given(x.shape, axis)) for x, axis in pairs]
        taps = ", ".join(f"{dtype}{shape}" for dtype, shape in shapes)
        return f"TapCache({taps}; {tap_files.size_text(self.nbytes)})"

    @property
    def nbytes(self) -> int:
        """Bytes of all taps of all examples."""
        return sum(tap.nbytes for tap in self._arrays)
