"""How much main memory a program's schedule holds besides arguments and results.

XLA's own figure counts what lies in a TPU's on-chip memory too. This one counts main
memory alone, by the schedule: from the instruction that gives an array to the last one
that reads it. It knows nothing of results that take the place of an operand, so both
are bounds from above, and the lesser one is the better.
"""

from .hlo import Computation, Module

_VIEWS = frozenset(
    "bitcast get-tuple-element tuple opt-barrier parameter constant".split()
)


def temporaries(module: Module) -> int:
    """The most bytes of main memory that the entry computation holds at once."""
    return _peak(module, module.entry, _sources(module.entry, module.entry.root.name))


def _peak(module: Module, inside: Computation, kept: set[str]) -> int:
    """The most that is live at once, but for what is kept."""
    ends: dict[str, int] = {}
    for place, one in enumerate(inside.instructions):
        for name in one.operands:
            for source in _sources(inside, name):
                ends[source] = place
    live, most = {}, 0
    for place, one in enumerate(inside.instructions):
        within = 0
        if one.op in ("while", "conditional", "call", "async-start"):
            called = [module.computations[name] for name in one.called]
            within = max((_peak(module, c, _results(c)) for c in called), default=0)
        if one.op not in _VIEWS and one.name not in kept:
            live[one.name] = _held(one.op, one.results)
        most = max(most, sum(live.values()) + within)
        live = {name: size for name, size in live.items() if ends.get(name, 0) > place}
    return most


def _held(op: str, results: tuple) -> int:
    if op.endswith("-start") and op != "async-start":
        return 0  # views of its operand, and what its end gives
    return sum(array.bytes for array in results if array.space == 0)


def _results(inside: Computation) -> set[str]:
    return _sources(inside, inside.root.name)


def _sources(inside: Computation, name: str) -> set[str]:
    """The instructions whose arrays a name stands for."""
    found, todo = set(), [name]
    while todo:
        one = inside.by_name[todo.pop()]
        if one.op in ("bitcast", "get-tuple-element", "tuple", "opt-barrier"):
            todo += one.operands
        else:
            found.add(one.name)
    return found
