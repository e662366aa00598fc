"""How far the rows of an embedding table have drifted."""

import itertools
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .._core import checks
from .canvas import COLOURS, axes_or_new, finish
from .series import real_array

_BINS = 40


def embedding_drift(
    table: Any, weight_decay: float, *, counts: Any = None, ax: Axes | None = None
) -> Axes:
    r"""Draws the size of embedding rows, in units of the bound of weight decay.

    A row whose update never changes sign goes to :math:`\pm 1 / \lambda`, that is, to
    1 in these units. Rows are drawn by rank, the most frequent first; of neighbours
    in rank, the median and the range from the 5th to the 95th percentile of
    :math:`\lambda \max_j |E_{ij}|`.

    Args:
      table: real numbers of shape ``(rows, width)``.
      weight_decay: :math:`\lambda > 0`, the decoupled decay the table trains with.
      counts: how often each row occurred, shape ``(rows,)``; ``None`` takes the rows
        as they stand, as in vocabularies sorted by frequency.
      ax: matplotlib Axes to draw on; ``None`` makes a figure of its own.

    Returns:
      The Axes. The first line has the medians, at most 40 of them, over the middle
      ranks (from 1) of as many groups, spaced evenly on a logarithmic scale.

    Raises:
      ValueError: ``table`` of another rank or empty; ``weight_decay`` not positive;
        ``counts`` of another shape.
      TypeError: something else than numbers, or ``ax`` that is no Axes.

    Examples:
      >>> import optaxtricks as ot
      >>> ax = ot.plots.embedding_drift([[1.0, -2.0], [8.0, 0.0]], 0.1, counts=[5, 9])
      >>> [round(float(y), 6) for y in ax.lines[0].get_ydata()]  # row 1 is first
      [0.8, 0.2]

    References:
      Su, 2023, kexue.fm archive 9736.
    """
    size = np.abs(real_array("table", table, 2)).max(axis=1)
    checks.positive(weight_decay=weight_decay)
    if counts is not None:
        often = real_array("counts", counts, 1)
        if often.shape != size.shape:
            raise ValueError(
                f"counts must have shape {size.shape}, a number a row, got "
                f"{often.shape}."
            )
        size = size[np.argsort(-often, kind="stable")]
    ax = axes_or_new(ax)
    groups = _by_rank(weight_decay * size)
    ranks = [np.sqrt(first * last) for first, last, _ in groups]
    low, middle, high = np.array(
        [np.percentile(rows, (5, 50, 95)) for _, _, rows in groups]
    ).T
    colour = COLOURS[0]
    ax.plot(ranks, middle, color=colour, marker="o", markersize=3, label="median")
    ax.fill_between(
        ranks, low, high, color=colour, alpha=0.2, linewidth=0, label="5 to 95 %"
    )
    ax.axhline(1.0, color=COLOURS[3], linestyle="--", label="bound of weight decay")
    ax.set_xscale("log")
    return finish(
        ax,
        xlabel="rank of the row" + ("" if counts is None else " by frequency"),
        ylabel=r"weight decay $\times$ max |entry| of the row",
        legend=True,
    )


def _by_rank(size: np.ndarray) -> list[tuple[int, int, np.ndarray]]:
    """Groups of neighbours in rank: the first rank, the last one, and the values."""
    edges = np.geomspace(1, size.size + 1, min(_BINS, size.size) + 1)
    edges = np.unique(np.round(edges).astype(int))
    pairs = itertools.pairwise(edges.tolist())
    return [(a, b - 1, size[a - 1 : b - 1]) for a, b in pairs]
