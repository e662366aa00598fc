"""Factors of leaves, noted in the traced program of an optimizer for whoever asks.

A note is the name of a value in the program. So what is traced and thrown away, as for
its shapes alone, does not count, and what the program takes part in counts once.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from . import programs

Factors = dict[str, np.ndarray | None]
"""By the path of a leaf; None where a traced program does not know it."""
_asked: ContextVar[bool] = ContextVar("asked", default=False)
_MARK = "optaxtricks factor "


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Has factors noted in all that is traced meanwhile."""
    token = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(token)


def note(update: Any, path: str, factor: Any) -> Any:
    """The update, by a name that tells what it was multiplied by, if anyone asks."""
    if not _asked.get():
        return update
    known = not isinstance(factor, jax.core.Tracer)
    value = np.asarray(factor, np.float64).tolist() if known else None
    return checkpoint_name(update, _MARK + json.dumps([path, value]))


def noted(traced: "programs.ClosedJaxpr") -> Factors:
    """All factors in a traced program, multiplied up for each leaf."""
    found: Factors = {}
    for path, value in _notes(traced.jaxpr):
        before = found.get(path, np.ones(()))
        unknown = before is None or value is None
        found[path] = None if unknown else before * np.asarray(value)
    return found


def _notes(jaxpr: "programs.Jaxpr") -> list[tuple[str, Any]]:
    """The notes in a program; of branches, those of the one that has the most."""
    found: list[tuple[str, Any]] = []
    for equation in jaxpr.eqns:
        name = str(equation.params.get("name", ""))
        if equation.primitive.name == "name" and name.startswith(_MARK):
            path, value = json.loads(name.removeprefix(_MARK))
            found.append((path, value))
        inside = [_notes(inner) for inner in _inner(equation.params.values())]
        if equation.primitive.name == "cond":
            inside = [max(inside, key=len, default=[])]
        found += [one for notes in inside for one in notes]
    return found


def _inner(values: Iterable[Any]) -> "list[programs.Jaxpr]":
    """The programs among the parameters of an operation."""
    found: list[programs.Jaxpr] = []
    for value in values:
        if isinstance(value, programs.ClosedJaxpr):
            found.append(value.jaxpr)
        elif isinstance(value, programs.Jaxpr):
            found.append(value)
        elif isinstance(value, tuple | list):
            found += _inner(value)
    return found
