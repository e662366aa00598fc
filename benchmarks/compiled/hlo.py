"""The text of an optimised HLO module, as computations of instructions.

Only what the text says is kept: what an instruction is called, what it reads, what
arrays it gives and where they lie. What that costs is for `traffic` to say.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<= ]*)\](\{[^{}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_OPENING = re.compile(r"^\s*(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
    r"\b(?:calls|body|condition|to_apply|true_computation|false_computation)"
    r"=%?([\w.\-]+)"
)
_LISTED = re.compile(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}")
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "ragged-all-to-all",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
# What gives arrays of its operands, and moves nothing.
VIEWS = frozenset(("bitcast", "get-tuple-element", "tuple", "opt-barrier"))


@dataclasses.dataclass(frozen=True)
class Array:
    """A part of a result.

    Attributes:
      dtype: HLO's name of it, such as ``bf16``.
      dims: its shape.
      space: the memory space of its layout; 0 is the device's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """How many entries it has."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Its size without padding; of tokens and the like, 0."""
        return (self.size * _bits(self.dtype) + 7) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: unique in its module.
      op: the operation, such as ``fusion``.
      results: the arrays it gives, a tuple flattened.
      operands: names of what it reads, in order.
      called: names of the computations that it runs, or that say how to reduce.
      attributes: what stands behind the operands.
      root: whether it is the result of its computation.
      line: the text.
    """

    name: str
    op: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[str, ...]
    attributes: str
    root: bool
    line: str

    def number(self, pattern: str) -> int | None:
        """The number that a pattern finds among the attributes."""
        found = re.search(pattern, self.attributes)
        return int(found[1]) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of their schedule."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Each instruction under its name."""
        return {one.name: one for one in self.instructions}

    @functools.cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """For each name, the instructions that read it."""
        found: dict[str, list[Instruction]] = {}
        for one in self.instructions:
            for name in dict.fromkeys(one.operands):
                found.setdefault(name, []).append(one)
        return found

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Its parameters by their number."""
        kept = (one for one in self.instructions if one.op == "parameter")
        return {int(_between(one.line, " parameter")): one for one in kept}

    @property
    def root(self) -> Instruction:
        """What gives its result."""
        return next(one for one in self.instructions if one.root)


@dataclasses.dataclass(frozen=True)
class Module:
    """A whole program."""

    computations: dict[str, Computation]
    entry: Computation

    def home(self, one: Instruction) -> Computation:
        """The computation that an instruction stands in."""
        return self._homes[one.name]

    @functools.cached_property
    def _homes(self) -> dict[str, Computation]:
        every = self.computations.values()
        return {one.name: home for home in every for one in home.instructions}


def parse(text: str) -> Module:
    """The computations of a module's text.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry = {}, None
    for name, is_entry, lines in _blocks(text):
        one = Computation(name, tuple(map(_instruction, lines)))
        computations[name] = one
        entry = one if is_entry else entry
    if entry is None:
        raise ValueError("the text is no HLO module: it has no ENTRY computation.")
    return Module(computations, entry)


def arrays(text: str) -> tuple[Array, ...]:
    """All arrays that a shape, be it a nested tuple, names."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(size.strip(" <=")) for size in dims.split(",") if size)
        found.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def _blocks(text: str) -> Iterator[tuple[str, bool, list[str]]]:
    name, is_entry, lines = "", False, []
    for line in text.splitlines():
        if not name:
            if opening := _OPENING.match(line):
                name, is_entry, lines = opening[2], bool(opening[1]), []
        elif line.strip() == "}":
            yield name, is_entry, lines
            name = ""
        elif _LINE.match(line):
            lines.append(line.strip())


def _instruction(line: str) -> Instruction:
    found = _LINE.match(re.sub(r"/\*.*?\*/", "", line))
    assert found is not None
    name, rest = found.groups()
    shape, rest = _shape_and_rest(rest)
    op, rest = rest.split("(", 1)
    inside = _between("(" + rest)
    attributes = rest[len(inside) + 1 :]
    called = tuple(_CALLED.findall(attributes))
    for listed in _LISTED.findall(attributes):
        called += tuple(each.strip(" %") for each in listed.split(","))
    return Instruction(
        name=name,
        op=op.strip(),
        results=arrays(shape),
        operands=tuple(_NAME.findall(inside)),
        called=called,
        attributes=attributes,
        root=line.startswith("ROOT "),
        line=line,
    )


def _shape_and_rest(text: str) -> tuple[str, str]:
    """A result's shape and what stands behind it."""
    if text.startswith("("):
        inside = _between(text)
        return inside, text[len(inside) + 2 :].lstrip()
    shape, rest = text.split(" ", 1)
    return shape, rest


def _between(text: str, before: str = "") -> str:
    """What stands between the first parenthesis behind a word and its partner."""
    start = text.index(before + "(") + len(before)
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return text[start + 1 : place]
    raise ValueError(f"unbalanced parentheses in {text!r}.")


def _bits(dtype: str) -> int:
    if dtype in ("token", "opaque"):
        return 0
    width = re.search(r"\d+", dtype)
    return int(width[0]) if width else 8
