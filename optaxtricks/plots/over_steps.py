"""Curves over the steps of a run."""

from typing import Any

from matplotlib.axes import Axes

from .canvas import axes_or_new, finish, style
from .series import curves, steps_of


def update_rms(history: Any, *, steps: Any = None, ax: Axes | None = None) -> Axes:
    """Draws the root mean square of the updates of each group over the steps.

    Args:
      history: a list of what :func:`metrics` gave, one dict a step; or a dict from a
        group's name to an array of shape ``(steps,)``; or one such array.
      steps: their numbers, shape ``(steps,)``; ``None`` counts from 0.
      ax: matplotlib Axes to draw on; ``None`` makes a figure of its own.

    Returns:
      The Axes, logarithmic in the RMS where all of it is positive. ``ax.figure`` is
      the figure, which ``ax.figure.savefig`` writes.

    Raises:
      ValueError: nothing to draw, or lengths that disagree.
      TypeError: something else than numbers, or ``ax`` that is no Axes.

    Examples:
      >>> import optaxtricks as ot
      >>> history = [{"updates/emb/rms": 0.5}, {"updates/emb/rms": 0.25}]
      >>> ax = ot.plots.update_rms(history)
      >>> ax.lines[0].get_label(), ax.lines[0].get_ydata().tolist()
      ('updates/emb', [0.5, 0.25])
    """
    ax = axes_or_new(ax)
    found = _drawn(ax, history, steps, "rms")
    if all((curve > 0).all() for curve in found.values()):
        ax.set_yscale("log")
    legend = list(found) != [""]
    return finish(ax, xlabel="step", ylabel="RMS of the updates", legend=legend)


def active_rows(history: Any, *, steps: Any = None, ax: Axes | None = None) -> Axes:
    """Draws over the steps which percentage of each group's rows has an update.

    Args:
      history: as for :func:`update_rms`; fractions in ``[0, 1]``, drawn in percent.
      steps: as for :func:`update_rms`.
      ax: as for :func:`update_rms`.

    Returns:
      The Axes.

    Raises:
      ValueError: as :func:`update_rms`, and for a fraction outside ``[0, 1]``.
      TypeError: as :func:`update_rms`.

    Examples:
      >>> import optaxtricks as ot
      >>> ax = ot.plots.active_rows({"emb": [0.25, 0.5]}, steps=[10, 20])
      >>> ax.lines[0].get_xdata().tolist(), ax.lines[0].get_ydata().tolist()
      ([10, 20], [25.0, 50.0])
    """
    for name, curve in curves(history, "active_row_fraction").items():
        if not ((curve >= 0) & (curve <= 1)).all():
            what = f"history[{name!r}]" if name else "history"
            raise ValueError(f"{what} must lie in [0, 1].")
    ax = axes_or_new(ax)
    found = _drawn(ax, history, steps, "active_row_fraction", scale=100.0)
    ax.set_ylim(-2, 102)
    legend = list(found) != [""]
    return finish(ax, xlabel="step", ylabel="rows with an update (%)", legend=legend)


def collapse(history: Any, *, steps: Any = None, ax: Axes | None = None) -> Axes:
    """Draws how far representations are from collapse: 0 collapsed, 1 isotropic.

    Args:
      history: a list of what :func:`collapse_metrics` gave, one dict a step; or a dict
        of arrays such as ``{"std_ratio": ..., "effective_rank": ...}``; or one array.
      steps: as for :func:`update_rms`.
      ax: as for :func:`update_rms`.

    Returns:
      The Axes.

    Raises:
      ValueError: as :func:`update_rms`, and where steps have different names.
      TypeError: as :func:`update_rms`.

    Examples:
      >>> import optaxtricks as ot
      >>> ax = ot.plots.collapse([{"std_ratio": 1.0}, {"std_ratio": 0.1}])
      >>> ax.lines[0].get_label(), ax.lines[0].get_ydata().tolist()
      ('std_ratio', [1.0, 0.1])
    """
    ax = axes_or_new(ax)
    found = _drawn(ax, history, steps, None)
    ax.set_ylim(min(0.0, *(c.min() for c in found.values())) - 0.02, None)
    ax.axhline(1.0, color="0.6", linewidth=0.8, zorder=0)
    legend = list(found) != [""]
    return finish(ax, xlabel="step", ylabel="0 collapsed, 1 isotropic", legend=legend)


def _drawn(
    ax: Axes, history: Any, steps: Any, reading: str | None, *, scale: float = 1.0
) -> dict[str, Any]:
    """Draws the curves, which it returns."""
    found = curves(history, reading)
    at = steps_of(steps, found)
    for index, (name, curve) in enumerate(found.items()):
        ax.plot(at, scale * curve, label=name or None, **style(index))
    return found
