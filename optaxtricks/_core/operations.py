"""Single operations of a traced program, as programs of their own."""

from collections.abc import Sequence
from typing import Any

from . import programs


def alone(jaxpr: "programs.Jaxpr", equation: Any) -> "programs.ClosedJaxpr":
    """A program of one operation, whose arguments are `by_variable` of its operands."""
    single = jaxpr.replace(
        constvars=[],
        invars=list(by_variable(equation, equation.invars)),
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
    )
    return programs.ClosedJaxpr(single, ())


def by_variable(equation: Any, operands: Sequence[Any]) -> dict[Any, Any]:
    """Operands that are no literals, each once."""
    pairs = zip(equation.invars, operands, strict=True)
    return {atom: x for atom, x in pairs if not isinstance(atom, programs.Literal)}
