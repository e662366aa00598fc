"""Floating-point operations of a compiled program's matrix products.

Element-wise arithmetic is left out: of a step of a transformer it is a hundredth.
"""

import json
import math
import re

from .hlo import Computation, Instruction, Module
from .traffic import Traffic

_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_GEMM = re.compile(r'custom_call_target="__cublas[^"]*"')
_HLO_LHS = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")


def flops(module: Module, seen: Traffic) -> int:
    """Twice the multiply-adds, as often as each of them runs."""
    return sum(
        work.times * _inside(module, work.instruction, module.home(work.instruction))
        for work in seen.work
    )


def _inside(module: Module, one: Instruction, home: Computation) -> int:
    if one.op == "convolution":
        return _convolution(one, home)
    if one.op == "dot":
        found = _HLO_LHS.search(one.attributes)
        return _product(one, home, found[1].split(",") if found else [])
    if one.op == "custom-call" and _GEMM.search(one.attributes):
        return _product(one, home, _cublas_dims(one))
    if one.op != "fusion":
        return 0
    inner = module.computations[one.called[0]]
    return sum(_inside(module, each, inner) for each in inner.instructions)


def _product(one: Instruction, home: Computation, contracted: list[str]) -> int:
    left = home.by_name[one.operands[0]].results[0]
    shared = math.prod(left.dims[int(axis)] for axis in contracted if axis)
    return 2 * one.results[0].size * shared


def _cublas_dims(one: Instruction) -> list[str]:
    found = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', one.attributes)
    return json.loads(found[1]) if found else []


def _convolution(one: Instruction, home: Computation) -> int:
    """XLA for TPUs writes each product so, its batch axes as windows of one entry."""
    labels = _LABELS.search(one.attributes)
    assert labels is not None
    left, right, out = labels.groups()
    sizes = [home.by_name[name].results[0].dims for name in one.operands]
    lhs, kernel = (
        dict(zip(names, dims, strict=True))
        for names, dims in zip((left, right), sizes, strict=True)
    )
    result = dict(zip(out, one.results[0].dims, strict=True))
    window = _WINDOW.search(one.attributes)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    total = 2 * result["b"] * result["f"] * kernel["i"]
    for place, name in enumerate(sorted(n for n in right if n.isdigit())):
        total *= _pairs(lhs[name], kernel[name], result[name], options, place)
    return total


def _pairs(
    size: int, window: int, positions: int, options: dict[str, str], place: int
) -> int:
    """How many of a spatial axis's pairs of result and kernel meet an entry."""

    def option(name: str, default: int) -> int:
        if name not in options:
            return default
        return int(options[name].split("x")[place].split("_")[0])

    stride, left = option("stride", 1), option("pad", 0)
    spread, dilation = option("lhs_dilate", 1), option("rhs_dilate", 1)
    last = spread * (size - 1)
    return sum(
        0 <= at <= last and at % spread == 0
        for start in range(positions)
        for step in range(window)
        for at in [start * stride + step * dilation - left]
    )
