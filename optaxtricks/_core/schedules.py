"""Arguments that may be schedules."""

from typing import Any

from . import checks


def at_step(step: Any, **named: Any) -> Any:
    """The argument itself or, where it is a schedule, what it gives at a step."""
    ((name, value),) = named.items()
    if callable(value):
        value = value(step)
        checks.scalar(**{name: value})
    return value
