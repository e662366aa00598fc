"""What a compiled program moves, launches and exchanges, read from its schedule.

An instruction of the schedule reads its operands from the device's memory and writes
its results there, each array once; inside a fusion nothing is written. Of an operand
that a fusion only slices or gathers from, what it takes out is counted; of a result
that is written into an operand, what is put in. A loop counts as often as it runs.
"""

import dataclasses
import re
from collections.abc import Iterator

from .hlo import COLLECTIVES, VIEWS, Array, Computation, Instruction, Module
from .loops import trips
from .reader import Reader

_FREE = VIEWS | frozenset(
    "parameter constant after-all iota partition-id replica-id add-dependency "
    "domain".split()
)
_FREE_CALLS = ("ConcatBitcast", "AllocateBuffer", "Sharding", "AssumeGatherIndices")
_HOST_OPS = frozenset(("infeed", "outfeed", "send", "recv"))
_HOST_CALLS = re.compile(r'custom_call_target="[^"]*(?:callback|host)[^"]*"', re.I)
_HOST_SPACE = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """One instruction of the schedule that does something.

    Attributes:
      instruction: it.
      times: how often it runs; of a loop whose trips the text does not tell, once.
      read: bytes of main memory that a run reads.
      written: bytes that it writes.
    """

    instruction: Instruction
    times: int
    read: int
    written: int

    @property
    def moved(self) -> int:
        """Bytes of all its runs."""
        return self.times * (self.read + self.written)

    @property
    def line(self) -> str:
        """Its text without what is for the compiler alone."""
        kept = re.split(
            r", (?:metadata|backend_config|sharding)=", self.instruction.line
        )
        return kept[0][:240]


@dataclasses.dataclass(frozen=True)
class Exchange:
    """A collective: its kind, one of its results, and its text."""

    kind: str
    array: Array
    line: str


@dataclasses.dataclass(frozen=True)
class Loop:
    """A while loop: its trips, None if the text does not tell, and its text."""

    trips: int | None
    line: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """All of a program.

    Attributes:
      work: what its schedule does, in order.
      least: bytes of its arguments that it reads and of its results that it writes,
        each array once.
      exchanges: its collectives.
      loops: its while loops.
      host: lines that talk to the host.
    """

    work: list[Work]
    least: int
    exchanges: list[Exchange]
    loops: list[Loop]
    host: list[str]

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return sum(one.moved for one in self.work)

    @property
    def launches(self) -> int:
        """How many times something is started."""
        ended = ("-done", "-update")
        started = (one for one in self.work if not one.instruction.op.endswith(ended))
        return sum(one.times for one in started)

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate, where it gives one."""
        pattern = r'"estimated_cycles":"(\d+)"'
        found = [(one.times, one.instruction.number(pattern)) for one in self.work]
        known = [times * cycles for times, cycles in found if cycles is not None]
        return sum(known) if known else None

    def heaviest(self, count: int = 6) -> list[str]:
        """The lines that move most."""
        order = sorted(self.work, key=lambda one: -one.moved)
        return [f"{one.moved / 1e6:10.2f} MB  {one.line}" for one in order[:count]]


def traffic(module: Module) -> Traffic:
    """Counts a program."""
    found = [one for c in module.computations.values() for one in c.instructions]
    return Traffic(
        work=list(_Walk(module).work_of(module.entry, 1)),
        least=_least(module.entry),
        exchanges=[
            Exchange(kind, array, one.line)
            for one in found
            # The result of an asynchronous one is that of its end.
            if (kind := one.op.removesuffix("-done")) in COLLECTIVES
            for array in one.results
        ],
        loops=[Loop(trips(w, module), w.line) for w in found if w.op == "while"],
        host=[one.line for one in found if _talks_to_the_host(one)],
    )


def _least(entry: Computation) -> int:
    used = set()
    for one in entry.instructions:
        if not (one.root and one.op == "tuple"):
            used.update(one.operands)
    reads = [one for one in entry.parameters.values() if one.name in used]
    total = sum(array.bytes for one in reads for array in one.results)
    root = entry.root
    if root.op != "tuple":
        return total + sum(array.bytes for array in root.results)
    for name in root.operands:
        source = entry.by_name[name]
        if source.op != "parameter":
            total += sum(array.bytes for array in source.results)
    return total


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Walks the schedule of a module."""

    module: Module

    def work_of(self, computation: Computation, times: int) -> Iterator[Work]:
        for one in computation.instructions:
            if one.op == "while":
                for name in one.called:
                    inner = self.module.computations[name]
                    yield from self.work_of(
                        inner, times * (trips(one, self.module) or 1)
                    )
            elif one.op == "conditional":
                sides = [
                    list(self.work_of(self.module.computations[name], times))
                    for name in one.called
                ]
                yield from max(sides, key=lambda side: sum(work.moved for work in side))
            elif one.op in ("call", "async-start"):
                for name in one.called:
                    yield from self.work_of(self.module.computations[name], times)
            elif not _is_free(one):
                yield Work(one, times, *Reader(self.module).bytes(one, computation))


def _is_free(one: Instruction) -> bool:
    if one.op in ("async-done", "async-update"):
        return True
    if one.op == "custom-call":
        return any(f'"{name}"' in one.attributes for name in _FREE_CALLS)
    return one.op in _FREE


def _talks_to_the_host(one: Instruction) -> bool:
    if one.op == "custom-call":
        return _HOST_CALLS.search(one.attributes) is not None
    in_host = any(array.space == _HOST_SPACE for array in one.results)
    return in_host or one.op.split("-")[0] in _HOST_OPS
