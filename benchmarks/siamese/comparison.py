"""All sweeps, and the summary of what they measured."""

import argparse
import time
from typing import Any

from .. import harness
from ..comparison_report import progress, statistic
from . import probes, variants
from .digits import Digits, read_digits
from .training import Program
from .variants import SWEEPS


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Trains every sweep; returns what goes into the JSON file."""
    size = options.sizes
    start = (time.monotonic(), time.process_time())
    digits = read_digits(size.train, size.test)
    results = {}
    with progress() as bar:
        total = len(options.chosen) * (size.steps // size.every)
        task = bar.add_task("training", total=total)
        for name in options.chosen:
            # One after the other: two such programs at once were seen to wait for one
            # another for ever on a machine of two cores.
            program = Program(SWEEPS[name], size, digits, options.seeds)
            results[name] = program.run(lambda: bar.advance(task))
    spent = {
        "seconds": time.monotonic() - start[0],
        "cpu_seconds": time.process_time() - start[1],
    }
    return {
        "settings": _settings(options) | spent,
        "baselines": _baselines(digits, results),
        "sweeps": {name: _summary(name, x, size) for name, x in results.items()},
    }


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    size = options.sizes
    return {
        "environment": harness.environment(),
        "size": options.size,
        "seeds": options.seeds,
        "steps": size.steps,
        "batch": size.batch,
        "width": size.width,
        "feature": size.feature,
        "train_images": size.train,
        "test_images": size.test,
        "learning_rate": variants.RATE,
        "weight_decay": variants.DECAY,
        "momentum": variants.MOMENTUM,
    }


def _baselines(digits: Digits, results: dict[str, Any]) -> dict[str, Any]:
    """Accuracies of the pixels themselves, and of encoders that nobody trained."""
    pixels = probes.accuracies(probes.views(digits), digits)
    untrained = next(iter(results.values()))["untrained"]
    return {
        "pixels": {name: statistic([float(x)]) for name, x in pixels.items()},
        # Before training, all values of a sweep are the same network.
        "untrained": {name: statistic(x[:, 0]) for name, x in untrained.items()},
    }


def _summary(name: str, result: dict[str, Any], size: Any) -> dict[str, Any]:
    sweep, curves = SWEEPS[name], result["curves"]
    steps = list(range(size.every, size.steps + 1, size.every))
    entries = []
    for i, value in enumerate(sweep.values):
        measured = {m: statistic(c[:, i, -1]) for m, c in curves.items()}
        means = {m: c[:, i].mean(axis=0).tolist() for m, c in curves.items()}
        entries.append(
            {
                "value": value,
                **measured,
                **{m: statistic(x[:, i]) for m, x in result["trained"].items()},
                "curves": {"step": steps, **means},
            }
        )
    return {"number": sweep.number, "stop_gradient": sweep.stop, "entries": entries}
