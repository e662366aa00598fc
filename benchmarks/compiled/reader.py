"""What one instruction of a schedule reads and writes in main memory."""

import collections
import dataclasses

from .hlo import VIEWS, Array, Computation, Instruction, Module

_PARTS = frozenset(("slice", "dynamic-slice", "gather"))
_WRITES_INTO = frozenset(("dynamic-update-slice", "scatter"))
# XLA for TPUs may let a collective run beside fusions: all of these name it.
_CHAINED = "chain_id="
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_ASYNC_DONE = 'custom_call_target="AsyncCollectiveDone"'


@dataclasses.dataclass(frozen=True)
class Reader:
    """Counts the instructions of a module."""

    module: Module

    def bytes(self, one: Instruction, inside: Computation) -> tuple[int, int]:
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
