"""Curves over steps, from arrays or from what `metrics` gave at each step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def curves(history: Any, reading: str | None) -> dict[str, np.ndarray]:
    """One curve of numbers for each group.

    Args:
      history: dicts of metrics, one a step, of which the entries that end in
        `reading` count; or curves by name; or one curve.
      reading: the last part of the metrics' names; None takes every entry.
    """
    if isinstance(history, Mapping):
        found = _with_reading(history, reading)
    elif _are_metrics(history):
        found = _from_metrics(history, reading)
    else:
        found = {"": history}
    return {name: _curve(name, values) for name, values in found.items()}


def steps_of(steps: Any, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """The steps given, or 0, 1, ... as many as the curves are long."""
    if not found:
        raise ValueError("history must hold at least one curve, got none.")
    lengths = {curve.size for curve in found.values()}
    if len(lengths) > 1:
        sizes = {name: curve.size for name, curve in found.items()}
        raise ValueError(f"history must hold curves of one length, got {sizes}.")
    (length,) = lengths
    if steps is None:
        return np.arange(length)
    given = np.asarray(steps)
    if given.shape != (length,):
        raise ValueError(
            f"steps must have shape ({length},) as the curves do, got {given.shape}."
        )
    return given


def real_array(name: str, value: Any, ndim: int) -> np.ndarray:
    """An array of real numbers of this rank and with entries."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must hold real numbers, got {type(value).__name__}."
        ) from None
    if array.ndim != ndim or not array.size:
        raise ValueError(
            f"{name} must have {ndim} axes and some entry, got shape {array.shape}."
        )
    return array


def _are_metrics(history: Any) -> bool:
    if not isinstance(history, Sequence) or isinstance(history, str) or not history:
        return False
    return all(isinstance(step, Mapping) for step in history)


def _with_reading(history: Mapping[Any, Any], reading: str | None) -> dict[str, Any]:
    """Curves by name; of metrics that a scan has stacked, those of this reading."""
    named = {str(name): values for name, values in history.items()}
    ending = f"/{reading}"
    stacked = [name for name in named if name.endswith(ending)]
    if reading is None or not stacked:
        return named
    return {name.removesuffix(ending): named[name] for name in stacked}


def _from_metrics(
    history: Sequence[Mapping[str, Any]], reading: str | None
) -> dict[str, list[Any]]:
    ending = "" if reading is None else f"/{reading}"
    names = [name for name in history[0] if name.endswith(ending)]
    every = {name: None for step in history for name in step if name.endswith(ending)}
    if late := [name for name in every if name not in history[0]]:
        raise ValueError(f"history lacks {late} at position 0.")
    if not names:
        raise ValueError(
            f"history has no entry that ends in {ending!r}; the first step has "
            f"{list(history[0])}."
        )
    for index, step in enumerate(history):
        if missing := [name for name in names if name not in step]:
            raise ValueError(f"history lacks {missing} at position {index}.")
    return {
        name.removesuffix(ending): [step[name] for step in history] for name in names
    }


def _curve(name: str, values: Any) -> np.ndarray:
    what = f"history[{name!r}]" if name else "history"
    return real_array(what, values, 1)
