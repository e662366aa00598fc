"""Which outputs of a traced function are zero whatever goes in."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from . import programs
from .data_flow import called

# One operand in, and where that is zero, zeros out.
_KEEPS_ZERO = {
    "abs",
    "broadcast_in_dim",
    "conj",
    "convert_element_type",
    "copy",
    "copy_p",
    "cumsum",
    "expand_dims",
    "imag",
    "name",
    "neg",
    "pad",
    "real",
    "reduce_max",
    "reduce_min",
    "reduce_precision",
    "reduce_sum",
    "reshape",
    "reshard",
    "rev",
    "sharding_constraint",
    "sign",
    "slice",
    "sqrt",
    "square",
    "squeeze",
    "tanh",
    "transpose",
}
_ANY_ZERO = {"mul", "dot_general"}
_FIRST_ZERO = {"div", "dynamic_slice", "gather"}
_ALL_ZERO = {"add", "sub", "add_any", "max", "min", "concatenate", "scatter-add"}


def zero_outputs(closed: "programs.ClosedJaxpr") -> list[bool]:
    """For each output of a jaxpr, whether it is zero for all inputs.

    By rules for single operations, so a zero that comes about otherwise, such as
    x - x, is not seen. Zero times NaN counts as zero.
    """
    return _outputs(closed.jaxpr, closed.consts, [False] * len(closed.jaxpr.invars))


def _outputs(
    jaxpr: "programs.Jaxpr", consts: Sequence[Any], inputs: list[bool]
) -> list[bool]:
    zero = {v for v, is_zero in zip(jaxpr.invars, inputs, strict=True) if is_zero}
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        if _is_zero(const):
            zero.add(var)
    known = lambda atom: (
        _is_zero(atom.val) if isinstance(atom, programs.Literal) else atom in zero
    )
    for equation in jaxpr.eqns:
        operands = [known(atom) for atom in equation.invars]
        results = _results(equation, operands)
        pairs = zip(equation.outvars, results, strict=True)
        zero |= {var for var, is_zero in pairs if is_zero}
    return [known(atom) for atom in jaxpr.outvars]


def _results(equation: Any, operands: list[bool]) -> list[bool]:
    name, count = equation.primitive.name, len(equation.outvars)
    if name == "cond":
        branches = [
            _outputs(b.jaxpr, b.consts, operands[1:])
            for b in equation.params["branches"]
        ]
        return [all(column) for column in zip(*branches, strict=True)]
    inner = called(equation.params)
    if inner is not None and len(inner.jaxpr.invars) == len(operands):
        if name == "scan":
            return [False] * count
        return _outputs(inner.jaxpr, inner.consts, operands)
    if name == "optimization_barrier":
        return operands
    if name == "integer_pow":  # whose zeroth power of zero is 1
        return [operands[0] and equation.params["y"] > 0]
    if name == "select_n":
        return [all(operands[1:])]
    one = (
        (name in _KEEPS_ZERO and all(operands))
        or (name in _ANY_ZERO and any(operands))
        or (name in _FIRST_ZERO and operands[0])
        or (name in _ALL_ZERO and all(operands))
    )
    return [bool(one) and bool(operands)] * count


def _is_zero(value: Any) -> bool:
    """Whether a known value is zero everywhere; looked at only if it is small."""
    if isinstance(value, jax.core.Tracer):
        return False
    if jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.extended):
        return False
    return np.size(value) <= 2**16 and not np.any(np.asarray(value))
