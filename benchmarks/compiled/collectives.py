"""What the devices of a compiled program send each other.

Bytes are those that a device must send at least, whatever the algorithm: of an
all-reduce of n bytes over k devices 2 n (k - 1) / k, of an all-gather or
reduce-scatter that gives or takes n bytes n (k - 1) / k (Chan et al., 2007).
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from .hlo import COLLECTIVES, Array, Computation, Instruction, Module
from .loops import trips

_SCATTERED = "all-reduce-scatter"  # what XLA for TPUs calls such a fusion


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange of a program.

    Attributes:
      kind: such as "all-gather".
      axes: the axes of the mesh over which it runs, joined by "+".
      times: how often it runs.
      size: bytes of its larger side on a device.
      sent: bytes that a device sends each time, at least.
      line: its text.
    """

    kind: str
    axes: str
    times: int
    size: int
    sent: float
    line: str


def collectives(module: Module, mesh: Sequence[tuple[str, int]]) -> list[Collective]:
    """All exchanges of a program for a mesh, given as its axes and their sizes."""
    once: dict[tuple[str, ...], Collective] = {}
    found = []
    for one in _walk(module, module.entry, 1, mesh):
        key = _spread(one)
        if key is None:
            found.append(one)
        # Some parts may stand in a loop inside the one that it starts and ends in.
        elif key not in once or one.times < once[key].times:
            once[key] = one
    return found + list(once.values())


def _spread(one: Collective) -> tuple[str, ...] | None:
    """What the parts share of one that XLA spread over the fusions it runs beside."""
    chain = re.search(r'chain_id="(\d+)"', one.line)
    channel = re.search(r"channel_id=(\d+)", one.line)
    if chain is None or channel is None:
        return None
    return one.kind, chain[1], channel[1], str(one.size)


def _walk(
    module: Module, inside: Computation, times: int, mesh: Sequence[tuple[str, int]]
) -> Iterator[Collective]:
    for one, fusion in _with_fused(module, inside):
        if one.op in ("while", "conditional", "call", "async-start"):
            count = (trips(one, module) or 1) if one.op == "while" else 1
            for name in one.called:
                yield from _walk(module, module.computations[name], times * count, mesh)
        # The groups of an asynchronous one stand at its start.
        elif one.op.removesuffix("-start") in COLLECTIVES:
            found = _collective(one, module.home(one), fusion, times, mesh)
            if found is not None:
                yield found


def _with_fused(
    module: Module, inside: Computation
) -> Iterator[tuple[Instruction, str | None]]:
    """Instructions of the schedule and of its fusions, with the fusion's name."""
    for one in inside.instructions:
        yield one, None
        if one.op == "fusion":
            name = one.called[0]
            for each, _ in _with_fused(module, module.computations[name]):
                yield each, name


def _collective(
    one: Instruction,
    home: Computation,
    fusion: str | None,
    times: int,
    mesh: Sequence[tuple[str, int]],
) -> Collective | None:
    kind = one.op.removesuffix("-start")
    whole = fusion is not None and fusion.startswith(_SCATTERED)
    kind = "reduce-scatter" if whole else kind
    group = _group(one, mesh)
    if len(group) < 2:
        return None
    size = sum(array.bytes for array in _results(one, home))
    if kind == "reduce-scatter" and not whole:
        size *= len(group)
    share = (len(group) - 1) / len(group)
    if kind.startswith("collective"):
        sent = float(size)
    else:
        sent = size * share * (2 if kind == "all-reduce" else 1)
    axes = _axes(group, mesh)
    return Collective(kind, axes, times, size, sent, one.line)


def _results(one: Instruction, home: Computation) -> Sequence[Array]:
    """What it gives; of an asynchronous one, what its end gives."""
    if not one.op.endswith("-start"):
        return one.results
    ends = (r for r in home.readers.get(one.name, []) if r.op.endswith("-done"))
    return next(ends, one).results


def _group(one: Instruction, mesh: Sequence[tuple[str, int]]) -> list[int]:
    """The first group of devices; of a permutation, the first pair of two."""
    text = one.attributes
    if listed := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", text):
        pairs = re.findall(r"(\d+),(\d+)", listed[1])
        moved = ([int(a), int(b)] for a, b in pairs if a != b)
        return next(moved, [])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(number) for number in listed[1].split(",")]
    everyone = list(range(int(np.prod([size for _, size in mesh]))))
    if tiled := re.search(
        r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    ):
        return _tiled(*tiled.groups())[0].tolist()
    named = re.search(r"replica_groups=mesh\[(.*?)\] ?\{(.*?)\}", text)
    if named is None:
        return everyone
    sizes = re.findall(r"'(\w+)'=(\d+)", named[1])
    moving = set(re.findall(r"'(\w+)'", named[2]))
    order = np.arange(int(np.prod([int(size) for _, size in sizes])))
    if device_ids := re.search(
        r"device_ids=\(?\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
    ):
        order = _tiled(*device_ids.groups()).reshape(-1)
    grid = order.reshape([int(size) for _, size in sizes])
    at = tuple(slice(None) if axis in moving else 0 for axis, _ in sizes)
    return np.atleast_1d(grid[at]).reshape(-1).tolist()


def _tiled(shape: str, reshaped: str, permuted: str | None) -> np.ndarray:
    numbers = lambda text: [int(part) for part in text.split(",")]
    sizes = numbers(reshaped)
    grid = np.arange(int(np.prod(sizes))).reshape(sizes)
    if permuted:
        grid = grid.transpose(numbers(permuted))
    return grid.reshape(numbers(shape))


def _axes(group: list[int], mesh: Sequence[tuple[str, int]]) -> str:
    """The axes along which the devices of a group differ."""
    places = np.unravel_index(group, [size for _, size in mesh])
    named = zip(mesh, places, strict=True)
    return "+".join(axis for (axis, _), place in named if len(set(place.tolist())) > 1)
