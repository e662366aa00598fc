"""What the runs say: table and plot."""

from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from ..comparison_report import empty_table, png
from ..finetune.report import COLOURS, MARKERS, points
from .variants import SPEEDS

TITLES = {
    "stop_gradient": "SimSiam",
    "no_stop_gradient": "no stop-gradient",
    "fixed_predictor": "fixed predictor rate",
    "target_decay": "BYOL",
    "target_schedule": "BYOL, decay to 1",
}
BY_SPEED = ("stop_gradient", "no_stop_gradient", "fixed_predictor")
BY_DECAY = ("target_decay", "target_schedule")
MEASURES = {
    "std_ratio": "spread of representations (std ratio)",
    "effective_rank": "effective rank of representations",
    "linear": "accuracy of a linear probe (%)",
}


def table(results: dict[str, Any]) -> Table:
    """The comparison for a terminal, 80 columns wide."""
    settings = results["settings"]
    title = (
        f"{settings['train_images']} digits, {settings['steps']} steps of "
        f"{settings['batch']}, seeds {settings['seeds']}"
    )
    caption = (
        "std, rank: spread and effective rank of the representations, 0 collapsed, 1 "
        "isotropic; the rank does not see how small a spread is; k-NN, linear: "
        "accuracy (%) of probes of the features, on random views of images; ± standard "
        "error over seeds."
    )
    columns = ("value", "loss", "std", "rank", "k-NN", "linear")
    result = empty_table(title, caption, columns)
    for name, sweep in results["sweeps"].items():
        for entry in sweep["entries"]:
            result.add_row(
                TITLES[name],
                f"{entry['value']:g}",
                f"{entry['loss']['mean']:.3f}",
                f"{entry['std_ratio']['mean']:.3f}",
                f"{entry['effective_rank']['mean']:.3f}",
                *_accuracies(entry),
            )
        result.add_section()
    for name, entry in results["baselines"].items():
        result.add_row(name, "", "", "", "", *_accuracies(entry))
    return result


def _accuracies(entry: dict[str, Any]) -> list[str]:
    return [points(entry[name]) for name in ("neighbours", "linear")]


def plot(results: dict[str, Any]) -> bytes:
    """Collapse over the steps, and what speed and decay do to it, as a PNG."""
    # A Figure of its own needs no display and no global state.
    figure = Figure(figsize=(12.5, 10), layout="constrained")
    axes = figure.subplots(3, 3)
    sweeps = results["sweeps"]
    for row, (measure, label) in zip(axes, MEASURES.items(), strict=True):
        _draw_curves(row[0], sweeps, measure)
        speeds = [(n, sweeps[n]) for n in BY_SPEED if n in sweeps]
        _draw_ends(row[1], speeds, measure, results)
        row[1].set(xscale="log", xlabel="predictor's rate / encoder's")
        row[1].set_xticks(SPEEDS, [f"{speed:g}" for speed in SPEEDS])
        row[1].set_xticks([], minor=True)
        _draw_decays(row[2], sweeps, measure, results)
        row[2].set(xlabel="decay, or its base, of BYOL's target")
        for panel in row:
            panel.set_ylabel(label if panel is row[0] else "")
            panel.grid(alpha=0.3)
    _draw_curves(axes[2][0], sweeps, "loss")
    axes[2][0].set(ylabel="loss (-1 is the least)")
    axes[2][1].set_ylabel(MEASURES["linear"])
    for row in axes[:2]:
        for panel in row:
            panel.set_ylim(0, 1.02)
    heads = ("on the way", "speed of the predictor", "target of BYOL")
    for panel, head in zip(axes[0], heads, strict=True):
        panel.set_title(head)
        if panel.get_legend_handles_labels()[0]:
            columns = 2 if panel is axes[0][0] else 1
            panel.legend(frameon=False, fontsize=8, ncols=columns, loc="center right")
    settings = results["settings"]
    figure.suptitle(
        f"SimSiam and BYOL on digits, {settings['steps']} steps: mean and standard "
        f"error of {settings['seeds']} seeds"
    )
    return png(figure, dpi=120)


def _draw_curves(panel: Any, sweeps: dict[str, Any], measure: str) -> None:
    """With and without the stop-gradient, a colour for each speed."""
    if measure == "linear":
        return
    for name, dash in (("stop_gradient", "-"), ("no_stop_gradient", "--")):
        for i, entry in enumerate(sweeps.get(name, {"entries": []})["entries"]):
            curves = entry["curves"]
            label = f"{TITLES[name]}, x {entry['value']:g}"
            style = {"color": COLOURS[i], "linestyle": dash, "linewidth": 1.6}
            panel.plot(curves["step"], curves[measure], label=label, **style)
    panel.set(xlabel="training step", xlim=(0, None))


def _draw_ends(panel: Any, sweeps: Any, measure: str, results: dict[str, Any]) -> None:
    """The measure after training, over the sweeps' values."""
    for i, (name, sweep) in enumerate(sweeps):
        x = [entry["value"] for entry in sweep["entries"]]
        _draw_errors(panel, x, sweep["entries"], measure, name, i)
    _draw_baselines(panel, measure, results)


def _draw_decays(panel: Any, sweeps: Any, measure: str, results: Any) -> None:
    """The same over decays, evenly spaced: what counts is their distance from 1."""
    shown = [(n, sweeps[n]) for n in BY_DECAY if n in sweeps]
    values = sorted({e["value"] for _, sweep in shown for e in sweep["entries"]})
    for i, (name, sweep) in enumerate(shown, start=len(BY_SPEED)):
        x = [float(values.index(entry["value"])) for entry in sweep["entries"]]
        _draw_errors(panel, x, sweep["entries"], measure, name, i)
    panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    _draw_baselines(panel, measure, results)


def _draw_errors(
    panel: Any, x: list[float], entries: Any, measure: str, name: str, i: int
) -> None:
    scale = 100 if measure == "linear" else 1
    panel.errorbar(
        x,
        [scale * entry[measure]["mean"] for entry in entries],
        [scale * (entry[measure]["standard_error"] or 0) for entry in entries],
        color=COLOURS[i],
        marker=MARKERS[i],
        capsize=3,
        label=TITLES[name],
    )


def _draw_baselines(panel: Any, measure: str, results: dict[str, Any]) -> None:
    if measure != "linear":
        return
    dashes = {"pixels": ":", "untrained": "--"}
    for name, entry in results["baselines"].items():
        level = 100 * entry["linear"]["mean"]
        panel.axhline(level, color="0.35", linestyle=dashes[name], linewidth=1)
        # At the left edge, where no marker stands.
        place = {"xycoords": ("axes fraction", "data"), "xytext": (3, 2)}
        panel.annotate(
            name, (0, level), textcoords="offset points", fontsize=8, **place
        )
