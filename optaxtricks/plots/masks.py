"""How much of each leaf a mask keeps."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .._core.paths import leaves_with_paths
from .canvas import COLOURS, axes_or_new, finish


def kept_fraction(mask: Any, *, ax: Axes | None = None) -> Axes:
    """Draws which percentage of each leaf a mask keeps, a bar a leaf.

    Args:
      mask: a tree of bool arrays and Python bools, as :func:`top_fraction_mask`
        gives it and :func:`keep_entries` takes it.
      ax: matplotlib Axes to draw on; ``None`` makes a figure of its own.

    Returns:
      The Axes: a bar for each leaf in the order of the tree, from the top down, and a
      dashed line at the fraction of all entries under bool arrays.

    Raises:
      ValueError: a mask without leaves.
      TypeError: a leaf that is no bool and no bool array; ``ax`` that is no Axes.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> mask = {"b": True, "w": jnp.array([True, False, False, False])}
      >>> ax = ot.plots.kept_fraction(mask)
      >>> [float(bar.get_width()) for bar in ax.patches]
      [100.0, 25.0]
    """
    found = leaves_with_paths(mask)
    if not found:
        raise ValueError("mask is empty: it holds neither bools nor bool arrays.")
    arrays = [_bools(path, leaf) for path, leaf in found]
    ax = axes_or_new(ax)
    kept = [100.0 * (array.mean() if array.size else 0.0) for array in arrays]
    places = np.arange(len(kept))
    ax.barh(places, kept, color=COLOURS[0], height=0.7)
    ax.set_yticks(places, [path or "(root)" for path, _ in found])
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    parts = [array for array in arrays if array.ndim]
    if entries := sum(array.size for array in parts):
        share = 100.0 * sum(np.count_nonzero(array) for array in parts) / entries
        label = f"all masked leaves: {share:.3g} %"
        ax.axvline(share, color=COLOURS[3], linestyle="--", label=label)
    return finish(ax, xlabel="entries kept (%)", ylabel="", legend=bool(entries))


def _bools(path: str, leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype != bool:
        raise TypeError(
            f"mask must hold Python bools and bool arrays, but its leaf at {path!r} is "
            f"{array.dtype}."
        )
    return array
