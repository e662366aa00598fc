"""A function run once more, some of whose results are known."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from . import programs
from .data_flow import called
from .operations import alone, by_variable


def given_results(
    function: Callable[..., Any], args: Sequence[Any], known: Mapping[int, Any]
) -> Any:
    """What a function gives where some of its results are those that are known.

    Whatever it computes from one of these it computes from what is known.

    Args:
      function: of pytrees of arrays.
      args: its arguments.
      known: results, by their numbers among the leaves of all.
    """
    leaves, layout = jax.tree.flatten(args)
    flat = lambda *leaves: function(*jax.tree.unflatten(layout, leaves))
    traced, shapes = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    found = _outputs(traced, leaves, known)
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def _outputs(
    closed: "programs.ClosedJaxpr", args: Sequence[Any], known: Mapping[int, Any]
) -> list[Any]:
    jaxpr = closed.jaxpr
    results = {
        variable: known[i]
        for i, variable in enumerate(jaxpr.outvars)
        if i in known and not isinstance(variable, programs.Literal)
    }
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))
    read = lambda x: x.val if isinstance(x, programs.Literal) else values[x]
    for equation in jaxpr.eqns:
        operands = list(map(read, equation.invars))
        here = {
            i: results[variable]
            for i, variable in enumerate(equation.outvars)
            if variable in results
        }
        inner = called(equation.params)
        if here and inner is not None and equation.primitive.name in ("jit", "pjit"):
            found = _outputs(inner, operands, here)
        else:
            run = programs.jaxpr_as_fun(alone(jaxpr, equation))
            found = run(*by_variable(equation, operands).values())
            found = [here.get(i, x) for i, x in enumerate(found)]
        values.update(zip(equation.outvars, found, strict=True))
    return list(map(read, jaxpr.outvars))
