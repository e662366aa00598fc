"""What comparisons of trainings show alike: progress, statistics, table and PNG."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import rich.console
import rich.progress
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from rich import box
from rich.table import Table

from .finetune.report import mean_and_error


def progress() -> rich.progress.Progress:
    """A bar on the standard error."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TaskProgressColumn(),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
    )


def statistic(values: ArrayLike) -> dict[str, float | None]:
    """Mean and standard error over seeds, for the JSON file."""
    mean, error = mean_and_error(np.asarray(values, float).tolist())
    return {"mean": mean, "standard_error": error}


def empty_table(title: str, caption: str, columns: Iterable[str]) -> Table:
    """A table of variants, whose other columns hold numbers."""
    style: Any = {"box": box.SIMPLE_HEAD, "pad_edge": False, "padding": (0, 0, 0, 1)}
    result = Table(title=title, caption=caption, **style)
    result.add_column("variant", no_wrap=True)
    for column in columns:
        result.add_column(column, justify="right", no_wrap=True)
    return result


def png(figure: Figure, dpi: int) -> bytes:
    """The figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
