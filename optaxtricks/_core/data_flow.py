"""Which inputs of a traced function each of its outputs depends on."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from . import programs

Marks = list[int]
"""For each value a set of inputs, as the bits of an integer."""

_union = functools.partial(functools.reduce, operator.or_)


def sources(closed: "programs.ClosedJaxpr", inputs: Sequence[int]) -> Marks:
    """For each output of a jaxpr, the marks of all inputs that it may depend on.

    Through calls, branches and loops value by value; any other operation hands the
    marks of all its operands to all its results. Shapes depend on nothing.
    """
    return _outputs(closed.jaxpr, inputs)


def called(params: dict[str, Any]) -> "programs.ClosedJaxpr | None":
    """The function that a call, such as that of `jax.jit`, runs."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = params.get(name)
        if isinstance(inner, programs.ClosedJaxpr):
            return inner
    return None


def _outputs(jaxpr: "programs.Jaxpr", inputs: Sequence[int]) -> Marks:
    marks = dict(zip(jaxpr.invars, inputs, strict=True))
    known = lambda atom: 0 if isinstance(atom, programs.Literal) else marks.get(atom, 0)
    for equation in jaxpr.eqns:
        found = _results(equation, [known(atom) for atom in equation.invars])
        marks.update(zip(equation.outvars, found, strict=True))
    return [known(atom) for atom in jaxpr.outvars]


def _results(equation: Any, operands: Marks) -> Marks:
    rule = _RULES.get(equation.primitive.name)
    if rule is not None:
        return rule(equation, operands)
    inner = called(equation.params)
    if inner is not None and len(inner.jaxpr.invars) == len(operands):
        return _outputs(inner.jaxpr, operands)
    return [_union(operands, 0)] * len(equation.outvars)


def _cond(equation: Any, operands: Marks) -> Marks:
    choice, *given = operands
    branches = equation.params["branches"]
    found = [_outputs(branch.jaxpr, given) for branch in branches]
    return [_union(column, choice) for column in zip(*found, strict=True)]


def _while(equation: Any, operands: Marks) -> Marks:
    params = equation.params
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    asked, given, carry = operands[:first], operands[first:second], operands[second:]

    def again(carry: Marks) -> Marks:
        (goes_on,) = _outputs(params["cond_jaxpr"].jaxpr, asked + carry)
        after = _outputs(params["body_jaxpr"].jaxpr, given + carry)
        return [mark | goes_on for mark in after]

    return _settled(again, carry)


def _scan(equation: Any, operands: Marks) -> Marks:
    body = equation.params["jaxpr"].jaxpr
    # By ranks, as the counts have other names from one JAX to another: what is stacked
    # has an axis more outside.
    same = lambda outside, inside: len(outside.aval.shape) == len(inside.aval.shape)
    whole = sum(map(same, equation.invars, body.invars))
    count = sum(map(same, equation.outvars, body.outvars))
    given, carry = operands[: whole - count], operands[whole - count : whole]
    run = lambda carry: _outputs(body, given + carry + operands[whole:])
    carry = _settled(lambda carry: run(carry)[:count], carry)
    return carry + run(carry)[count:]


def _settled(again: Callable[[Marks], Marks], marks: Marks) -> Marks:
    """The marks of a carry once they grow no more."""
    while True:
        grown = [x | y for x, y in zip(marks, again(marks), strict=True)]
        if grown == marks:
            return marks
        marks = grown


_RULES: dict[str, Callable[[Any, Marks], Marks]] = {
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "optimization_barrier": lambda equation, operands: operands,
}
