"""What the runs say: summary, table and plot."""

import io
import math
import statistics
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.table import Table

Records = list[dict[str, Any]]
Entries = dict[str, dict[str, Any]]

# Okabe and Ito's colours, which differ for colour-blind readers too; black last.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", "-.", ":")
BASELINE = "full"


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Mean and its standard error; None for the error of a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def summarise(records: Records) -> Entries:
    """One entry for each recipe, in the order of first appearance."""
    by_recipe: dict[str, Records] = {}
    for record in records:
        by_recipe.setdefault(record["recipe"], []).append(record)
    return compared({name: _entry(runs) for name, runs in by_recipe.items()})


def compared(entries: Entries) -> Entries:
    """Entries with their differences to full fine-tuning, as far as it is among them.

    Paired by seed: equal seeds share the batch order and the fresh head.
    """
    full, baseline = entries.get(BASELINE), {}
    if full and full["accuracies"] is not None:
        baseline = dict(zip(full["seeds"], full["accuracies"], strict=True))
    return {
        name: entry
        | {
            "difference_to_full": None
            if name == BASELINE
            else _difference(entry, baseline)
        }
        for name, entry in entries.items()
    }


def _entry(runs: Records) -> dict[str, Any]:
    accuracies = [r["accuracy"] for r in runs]
    mean, error = mean_and_error(accuracies)
    first = runs[0]
    return {
        "date": max(r["date"] for r in runs),
        "learning_rate": first["learning_rate"],
        "seeds": [r["seed"] for r in runs],
        "accuracies": accuracies,
        "accuracy": {"mean": mean, "standard_error": error},
        "curve": _curve(runs),
        "first_epoch_loss": _loss(runs),
        "trained_parameters": first["trained_parameters"],
        "optimizer_state_bytes": first["optimizer_state_bytes"],
        "peak_temporary_bytes": max(r["peak_temporary_bytes"] for r in runs),
        # The least of the runs' medians: other load on the machine can only add.
        "step_ms": min(r["step_ms"] for r in runs),
        "epoch_seconds": min(r["epoch_seconds"] for r in runs),
        "caching_seconds": first["caching_seconds"],
    }


def _loss(runs: Records) -> dict[str, Any] | None:
    """Mean and standard error; None where a run diverged."""
    losses = [r["first_epoch_loss"] for r in runs]
    if None in losses:
        return None
    mean, error = mean_and_error(losses)
    return {"mean": mean, "standard_error": error}


def _curve(runs: Records) -> list[dict[str, Any]]:
    points = []
    for column in zip(*(r["curve"] for r in runs), strict=True):
        mean, error = mean_and_error([accuracy for _, accuracy in column])
        points.append({"step": column[0][0], "mean": mean, "standard_error": error})
    return points


def _difference(
    entry: dict[str, Any], baseline: dict[int, float]
) -> dict[str, Any] | None:
    if entry["accuracies"] is None:  # an early table's, which has means alone
        return entry["difference_to_full"]
    pairs = zip(entry["seeds"], entry["accuracies"], strict=True)
    gaps = [accuracy - baseline[seed] for seed, accuracy in pairs if seed in baseline]
    if not gaps:
        return None
    mean, error = mean_and_error(gaps)
    if error is None:
        verdict = "one seed: no statement"
    elif abs(mean) <= 2 * error:
        verdict = "no difference shown"
    else:
        verdict = "better" if mean > 0 else "worse"
    return {"mean": mean, "standard_error": error, "verdict": verdict}


def points(entry: dict[str, Any] | None, *, sign: bool = False) -> str:
    """Percentage points, with the standard error where there is one."""
    if entry is None:
        return "-"
    text = f"{100 * entry['mean']:{'+' if sign else ''}.1f}"
    error = entry["standard_error"]
    return text if error is None else f"{text} ± {100 * error:.1f}"


def title(results: dict[str, Any]) -> str:
    """Task and sizes, on one line."""
    task = results["task"]
    return (
        f"{task['name']}: {task['classes']} classes, {task['train']} training and "
        f"{task['dev']} dev examples"
    )


def table(results: dict[str, Any]) -> Table:
    """The comparison for a terminal, 80 columns wide."""
    caption = "rate: peak learning rate; state: the optimizer's, temp: peak, in MB"
    style = {"box": box.SIMPLE_HEAD, "pad_edge": False}
    result = Table(title=title(results), caption=caption, **style)
    result.add_column("recipe", no_wrap=True)
    columns = ("rate", "dev %", "trained", "state", "ms/step", "temp")
    for column in columns:
        result.add_column(column, justify="right", no_wrap=True)
    for name, entry in results["recipes"].items():
        result.add_row(
            name,
            f"{entry['learning_rate']:g}",
            points(entry["accuracy"]),
            f"{entry['trained_parameters']:,}",
            f"{entry['optimizer_state_bytes'] / 1e6:.2f}",
            f"{entry['step_ms']:.0f}",
            f"{entry['peak_temporary_bytes'] / 1e6:.0f}",
        )
    return result


def verdicts(results: dict[str, Any]) -> list[str]:
    """One line for each recipe that was run beside full fine-tuning."""
    lines = []
    for name, entry in results["recipes"].items():
        if (gap := entry["difference_to_full"]) is not None:
            lines.append(f"{name} - full: {points(gap, sign=True)} ({gap['verdict']})")
    for name, entry in results["recipes"].items():
        if (seconds := entry["caching_seconds"]) is not None:
            lines.append(
                f"{name}: an epoch takes {entry['epoch_seconds']:.1f} s, after "
                f"{seconds:.1f} s once for the encoder's hidden states"
            )
    return lines


def plot(results: dict[str, Any]) -> bytes:
    """Learning curves beside final accuracy, as a PNG."""
    # A Figure of its own needs no display and no global state.
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    summary = results["recipes"]
    for index, (name, entry) in enumerate(summary.items()):
        colour = COLOURS[index % len(COLOURS)]
        style = {
            "color": colour,
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index % len(DASHES)],
        }
        _draw_curve(left, name, entry["curve"], style)
        _draw_bar(right, index, entry["accuracy"], colour)
    left.set(xlabel="training step", ylabel="dev accuracy (%)", xlim=(0, None))
    left.grid(alpha=0.3)
    # Before the first evaluation there is room, however many recipes there are.
    left.legend(frameon=False, loc="upper left", fontsize="small")
    right.set(xlabel="final dev accuracy (%)", xlim=(0, 100))
    right.set_yticks(range(len(summary)), list(summary))
    right.invert_yaxis()
    seeds = max(len(entry["seeds"]) for entry in summary.values())
    note = "1 seed" if seeds == 1 else f"mean ± standard error, {seeds} seeds"
    figure.suptitle(f"{title(results)} ({note})")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _draw_curve(axes: Any, name: str, curve: list, style: dict[str, str]) -> None:
    steps = [p["step"] for p in curve]
    means = [100 * p["mean"] for p in curve]
    axes.plot(steps, means, markersize=5, label=name, **style)
    errors = [p["standard_error"] for p in curve]
    if None not in errors:
        low = [m - 100 * e for m, e in zip(means, errors, strict=True)]
        high = [m + 100 * e for m, e in zip(means, errors, strict=True)]
        axes.fill_between(
            steps, low, high, color=style["color"], alpha=0.15, linewidth=0
        )


def _draw_bar(axes: Any, place: int, accuracy: dict[str, Any], colour: str) -> None:
    mean, error = 100 * accuracy["mean"], accuracy["standard_error"]
    axes.barh(
        place,
        mean,
        xerr=None if error is None else 100 * error,
        color=colour,
        capsize=3,
        height=0.7,
    )
    room = mean + (0 if error is None else 100 * error) + 1.5
    axes.text(room, place, points(accuracy), va="center", fontsize=9)
