"""All variants and seeds, and the summary of what they measured."""

import argparse
import concurrent.futures
from collections.abc import Callable
from typing import Any

from .. import harness
from ..comparison_report import progress, statistic
from ..finetune.report import mean_and_error
from .text import RARE_BELOW, read_text
from .training import Program
from .variants import DECAY, VARIANTS

# A training keeps one core busy.
THREADS = 2
TIMED_WINDOWS = {"tiny": 1, "full": 3}

Records = list[dict[str, Any]]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Trains every variant with every seed; returns what goes into the JSON file."""
    size = options.sizes
    text = read_text(size.vocabulary, size.files)
    programs, runs = {}, {}
    with progress() as bar:
        total = len(options.chosen) * options.seeds * (size.steps // size.every)
        task = bar.add_task("training", total=total)
        advance = lambda: bar.advance(task)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            try:
                for name in options.chosen:
                    program = Program(VARIANTS[name], size, text)
                    programs[name] = program
                    runs[name] = _submit(pool, program, options.seeds, advance)
                records = {name: [f.result() for f in fs] for name, fs in runs.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        bar.update(task, description="timing")
        windows = TIMED_WINDOWS[options.size]
        sides = {name: program.timed() for name, program in programs.items()}
        seconds = harness.alternate(sides, windows=windows, warm_up=1)
    results = {
        name: _summary(records[name], size.every)
        | {
            "optimizer_state_bytes": programs[name].state_bytes,
            "step_ms": 1e3 * seconds[name] / size.every,
        }
        for name in options.chosen
    }
    return {"settings": _settings(options, text, records), "variants": results}


def _submit(
    pool: concurrent.futures.Executor,
    program: Program,
    seeds: int,
    advance: Callable[[], Any],
) -> list[concurrent.futures.Future[dict[str, Any]]]:
    return [pool.submit(program.run, seed, advance) for seed in range(seeds)]


def _settings(
    options: argparse.Namespace, text: Any, records: dict[str, Records]
) -> dict[str, Any]:
    size = options.sizes
    seen = [run["rows_seen"] for runs in records.values() for run in runs]
    return {
        "environment": harness.environment(),
        "size": options.size,
        "seeds": options.seeds,
        "steps": size.steps,
        "weight_decay": DECAY,
        "vocabulary": size.vocabulary,
        "width": size.width,
        "context": size.context,
        "batch": size.batch,
        "train_words": len(text.train),
        "held_out_words": len(text.held_out),
        "rare_below": RARE_BELOW,
        "rows_by_band": {name: len(ids) for name, ids in text.bands().items()},
        "rows_seen": sum(seen) / len(seen),
    }


def _summary(runs: Records, every: int) -> dict[str, Any]:
    curves = {"loss": _mean_curve([run["loss"] for run in runs])}
    for measure in ("max_times_decay", "stuck_rows", "stuck_entries"):
        values = [run["health"]["all"][measure] for run in runs]
        curves[measure] = _mean_curve(values)
    steps = [every * (i + 1) for i in range(len(curves["loss"]))]
    return {
        "held_out_loss": statistic([run["held_out_loss"] for run in runs]),
        "final_health": {
            band: {
                measure: statistic([run["health"][band][measure][-1] for run in runs])
                for measure in measures
            }
            for band, measures in runs[0]["health"].items()
        },
        "others_max_times_decay": statistic(
            [run["others_max_times_decay"] for run in runs]
        ),
        "half_bound_step": _first(steps, curves["max_times_decay"], 0.5),
        "curves": {"step": steps, **curves},
    }


def _mean_curve(curves: list[list[float]]) -> list[float]:
    return [mean_and_error(list(column))[0] for column in zip(*curves, strict=True)]


def _first(steps: list[int], curve: list[float], level: float) -> int | None:
    """The first measured step at which a curve is at a level."""
    reached = (s for s, y in zip(steps, curve, strict=True) if y >= level)
    return next(reached, None)
