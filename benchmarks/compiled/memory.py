"""How much main memory a program's schedule holds besides arguments and results.

XLA's own figure counts what lies in a TPU's on-chip memory too. This one counts main
memory alone, by the schedule: from the instruction that gives an array to the last one
that reads it. It knows nothing of results that take the place of an operand, so both
are bounds from above, and the lesser one is the better.
"""

from .hlo import VIEWS, Computation, Instruction, Module

_HELD_BEFORE = VIEWS | {"parameter", "constant"}


def temporaries(module: Module) -> int:
    """The most bytes of main memory that the entry computation holds at once."""
    return _peak(module, module.entry)


def _peak(module: Module, inside: Computation) -> int:
    """The most that is live at once, but for the results."""
    kept, ends = _sources(inside, inside.root.name), dict[str, int]()
    for place, one in enumerate(inside.instructions):
        for name in one.operands:
            ends.update(dict.fromkeys(_sources(inside, name), place))
    live, most = dict[str, int](), 0
    for place, one in enumerate(inside.instructions):
        within = 0
        if one.op in ("while", "conditional", "call", "async-start"):
            called = [module.computations[name] for name in one.called]
            within = max((_peak(module, c) for c in called), default=0)
        if one.op not in _HELD_BEFORE and one.name not in kept:
            live[one.name] = _held(one)
        most = max(most, sum(live.values()) + within)
        live = {name: size for name, size in live.items() if ends.get(name, 0) > place}
    return most


def _held(one: Instruction) -> int:
    if one.op.endswith("-start") and one.op != "async-start":
        return 0  # views of its operand, and what its end gives
    return sum(array.bytes for array in one.results if array.space == 0)


def _sources(inside: Computation, name: str) -> set[str]:
    """The instructions whose arrays a name stands for."""
    one = inside.by_name[name]
    if one.op not in VIEWS:
        return {name}
    return set().union(*[_sources(inside, operand) for operand in one.operands])
