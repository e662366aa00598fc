"""What the runs say: table and plot."""

from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from ..comparison_report import empty_table, png
from ..finetune.report import COLOURS, points

DASHES = ("-", "--", ":")
PANELS = {
    "max_times_decay": "largest |entry| of the word table * decay",
    "stuck_rows": "stuck rows of the word table (%)",
}


def table(results: dict[str, Any]) -> Table:
    """The comparison for a terminal, 80 columns wide."""
    settings = results["settings"]
    title = (
        f"{settings['vocabulary']:,} words, {settings['steps']} steps, "
        f"decay {settings['weight_decay']:g}, seeds {settings['seeds']}"
    )
    caption = (
        f"max: largest |entry| * decay, 1 at the bound; stuck: rows more than half of "
        f"whose entries are beyond half the bound, of all words and of those with "
        f"fewer than {settings['rare_below']} occurrences; output: of "
        f"the output table; MB: optimizer state; ms: a step. "
        f"{100 * settings['rows_seen']:.0f} % of the rows were looked up at all."
    )
    columns = ("held-out loss", "max", "stuck %", "rare %", "output %", "MB", "ms")
    result = empty_table(title, caption, columns)
    for name, entry in results["variants"].items():
        health = entry["final_health"]
        result.add_row(
            name,
            _loss(entry["held_out_loss"]),
            f"{health['all']['max_times_decay']['mean']:.2f}",
            points(health["all"]["stuck_rows"]),
            _stuck(health, "rare"),
            _stuck(health, "output"),
            f"{entry['optimizer_state_bytes'] / 1e6:.1f}",
            f"{entry['step_ms']:.0f}",
        )
    return result


def _stuck(health: dict[str, Any], part: str) -> str:
    return f"{100 * health[part]['stuck_rows']['mean']:.1f}" if part in health else "-"


def _loss(entry: dict[str, Any]) -> str:
    text = f"{entry['mean']:.3f}"
    error = entry["standard_error"]
    return text if error is None else f"{text} ± {error:.3f}"


def plot(results: dict[str, Any]) -> bytes:
    """The drift over the steps, as a PNG."""
    # A Figure of its own needs no display and no global state.
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for index, (name, entry) in enumerate(results["variants"].items()):
        style = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": DASHES[index // len(COLOURS)],
        }
        for panel, measure in zip(axes, PANELS, strict=True):
            scale = 100 if measure == "stuck_rows" else 1
            curves = entry["curves"]
            values = [scale * y for y in curves[measure]]
            panel.plot(curves["step"], values, label=name, linewidth=1.8, **style)
    for panel, label in zip(axes, PANELS.values(), strict=True):
        panel.set(xlabel="training step", ylabel=label, xlim=(0, None), ylim=(0, None))
        panel.grid(alpha=0.3)
    axes[0].axhline(1, color="0.4", linewidth=1)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    settings = results["settings"]
    figure.suptitle(
        f"Next-word model of {settings['vocabulary']:,} words, decay "
        f"{settings['weight_decay']:g}: mean of {settings['seeds']} seeds"
    )
    return png(figure, dpi=130)
