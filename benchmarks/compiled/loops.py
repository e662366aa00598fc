"""How often a while loop of a compiled program runs."""

import re

from .hlo import Instruction, Module


def trips(loop: Instruction, module: Module) -> int | None:
    """Its trips: as XLA says, or from a condition `i < n` on what the loop counts.

    XLA for TPUs does not say. A scan of JAX counts up by one, from 0 unless the text
    shows another constant.
    """
    known = loop.number(r'"known_trip_count":\{"n":"(\d+)"')
    if known is not None:
        return known
    name = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
    assert name is not None
    test = module.computations[name[1]]
    if test.root.op != "compare" or "direction=LT" not in test.root.attributes:
        return None
    counter, end = (test.by_name[operand] for operand in test.root.operands)
    place, last = counter.number(r"index=(\d+)"), _constant(end)
    if counter.op != "get-tuple-element" or place is None or last is None:
        return None
    return last - (_start(loop, place, module) or 0)


def _start(loop: Instruction, place: int, module: Module) -> int | None:
    """What the counter is before the first trip, if the text says so."""
    inside, (name,) = module.home(loop), loop.operands
    carried = inside.by_name[name]
    if carried.op != "tuple":
        return None
    first = inside.by_name[carried.operands[place]]
    while first.op in ("copy", "bitcast"):
        first = inside.by_name[first.operands[0]]
    return _constant(first)


def _constant(one: Instruction) -> int | None:
    found = re.search(r" constant\((-?\d+)\)", one.line)
    return int(found[1]) if one.op == "constant" and found else None
