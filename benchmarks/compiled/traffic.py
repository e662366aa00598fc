"""What a compiled program moves, launches and exchanges, read from its schedule.

An instruction of the schedule reads its operands from the device's memory and writes
its results there, each array once; inside a fusion nothing is written. Of an operand
that a fusion only slices or gathers from, what it takes out is counted; of a result
that is written into an operand, what is put in. A loop counts as often as it runs.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

from .hlo import COLLECTIVES, VIEWS, Array, Computation, Instruction, Module
from .loops import trips

_FREE = VIEWS | frozenset(
    "parameter constant after-all iota partition-id replica-id add-dependency "
    "domain".split()
)
_FREE_CALLS = ("ConcatBitcast", "AllocateBuffer", "Sharding", "AssumeGatherIndices")
_PARTS = frozenset(("slice", "dynamic-slice", "gather"))
_WRITES_INTO = frozenset(("dynamic-update-slice", "scatter"))
_HOST_OPS = frozenset(("infeed", "outfeed", "send", "recv"))
_HOST_CALLS = re.compile(r'custom_call_target="[^"]*(?:callback|host)[^"]*"', re.I)
_HOST_SPACE = 5
# XLA for TPUs may let a collective run beside fusions: all of these name it.
_CHAINED = "chain_id="
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_ASYNC_DONE = 'custom_call_target="AsyncCollectiveDone"'


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
        work=list(_Reader(module).work_of(module.entry, 1)),
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


class _Reader:
    """Walks the schedule of a module."""

    def __init__(self, module: Module) -> None:
        self.module = module

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
                yield Work(one, times, *self._bytes(one, computation))

    def _bytes(self, one: Instruction, inside: Computation) -> tuple[int, int]:
        """What an instruction reads and writes in main memory."""
        sources = [inside.by_name[name] for name in one.operands]
        if one.op == "fusion":
            inner = self.module.computations[one.called[0]]
            if _ASYNC_START in inner.root.attributes:
                return 0, 0
            if _ASYNC_DONE in inner.root.attributes:  # counts it all
                return _main(sources[0].results), _main(one.results)
        if one.op.endswith("-done"):  # its start has read
            return 0, _main(one.results)
        if one.op == "slice-start":
            part = one.results[len(sources)]  # behind those that it reads
            return part.bytes * (sources[0].results[0].space == 0), 0
        if one.op.endswith("-start"):
            return sum(_main(s.results) for s in _distinct(sources)), 0
        taken = collections.Counter[str]()
        for place, source in enumerate(sources):
            amount = self._taken(one, place)
            whole = _main(source.results)
            if amount is None:
                taken[source.name] = whole
            else:
                taken[source.name] = min(whole, taken[source.name] + amount)
        return sum(taken.values()), self._put(one, inside)

    def _taken(self, one: Instruction, place: int) -> int | None:
        """Bytes that are read of an operand; None for all of it."""
        if one.op in _PARTS and place == 0:
            return sum(array.bytes for array in one.results)
        if one.op in _WRITES_INTO and place == 0:
            return 0
        if one.op != "fusion":
            return None
        inner = self.module.computations[one.called[0]]
        return self._taken_inside(inner, inner.parameters[place])

    def _taken_inside(self, inner: Computation, source: Instruction) -> int | None:
        total = 0
        for reader in inner.readers.get(source.name, []):
            for place, name in enumerate(reader.operands):
                if name != source.name:
                    continue
                if _is_chained(reader, inner):
                    amount: int | None = 0
                elif reader.op == "bitcast":
                    amount = self._taken_inside(inner, reader)
                else:
                    amount = self._taken(reader, place)
                if amount is None:
                    return None
                total += amount
        return total

    def _put(self, one: Instruction, inside: Computation) -> int:
        """Bytes that are written of the results."""
        if one.op in _WRITES_INTO:
            return _update_size(one, inside)
        if one.op != "fusion":
            return _main(one.results)
        inner = self.module.computations[one.called[0]]
        root = inner.root
        parts = root.operands if root.op == "tuple" else (root.name,)
        spaces = [array.space for array in one.results]
        total = 0
        for place, name in enumerate(parts):
            source = inner.by_name[name]
            while source.op == "bitcast":
                source = inner.by_name[source.operands[0]]
            if root.op == "tuple" and (
                source.op == "parameter" or _is_chained(source, inner)
            ):
                continue  # passed through
            if source.op in _WRITES_INTO and _is_parameter(inner, source.operands[0]):
                total += _update_size(source, inner)
            elif source.op == "fusion" or place >= len(spaces):
                total += self._put(source, inner)
            elif spaces[place] == 0:
                total += sum(array.bytes for array in source.results)
        return total


def _is_chained(one: Instruction, inner: Computation) -> bool:
    """Whether it is a collective's that runs beside the fusion, or hands it on."""
    beside = any(_CHAINED in each.attributes for each in inner.instructions)
    return beside and (_CHAINED in one.attributes or (one.root and one.op == "tuple"))


def _update_size(one: Instruction, inside: Computation) -> int:
    place = 1 if one.op == "dynamic-update-slice" else 2
    return sum(a.bytes for a in inside.by_name[one.operands[place]].results)


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


def _distinct(sources: list[Instruction]) -> list[Instruction]:
    return list({source.name: source for source in sources}.values())


def _main(arrays: tuple[Array, ...]) -> int:
    """Bytes that lie in main memory."""
    return sum(array.bytes for array in arrays if array.space == 0)


def _is_parameter(inside: Computation, name: str) -> bool:
    source = inside.by_name[name]
    while source.op in VIEWS and source.operands:
        source = inside.by_name[source.operands[0]]
    return source.op == "parameter"
