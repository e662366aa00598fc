"""What every picture shares: Axes to draw on, and one look."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which differ for colour-blind readers too; black last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")


def axes_or_new(ax: Any) -> Axes:
    """The Axes given, or those of a new figure that no global state knows."""
    if ax is None:
        return Figure(figsize=(6.4, 4.0), layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax must be a matplotlib Axes, got {type(ax).__name__}.")
    return ax


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of the curve of this number: no two of 28 are alike."""
    colour = COLOURS[index % len(COLOURS)]
    return {"color": colour, "linestyle": DASHES[index // len(COLOURS) % len(DASHES)]}


def finish(ax: Axes, *, xlabel: str, ylabel: str, legend: bool) -> Axes:
    """Labels, a light grid, and a legend where there is something to tell apart."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    if legend and len(ax.get_legend_handles_labels()[0]) > 3:
        # Beside the curves, which leave no room for so many.
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    elif legend:
        ax.legend(frameon=False)
    return ax
