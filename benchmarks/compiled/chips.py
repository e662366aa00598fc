"""What the makers publish of each kind of chip.

Cloud TPU's pages of v4, v5e, v5p and v6e, and NVIDIA's data sheet of the H100 SXM5. A
speed between chips is that of one direction, half of what is published as the sum of
both.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of a chip.

    Attributes:
      flops: of bfloat16 matrix products, dense, each second.
      bandwidth: of its memory, bytes a second.
      memory: bytes of it that a program may use; of a TPU what its compiler grants.
      link: bytes a second that one link sends.
      links: how many there are.
    """

    flops: float
    bandwidth: float
    memory: int
    link: float
    links: int


_GIB = 2**30
CHIPS = {
    "v4": Chip(275e12, 1228e9, int(30.75 * _GIB), 50e9, 6),
    "v5e": Chip(197e12, 819e9, int(15.75 * _GIB), 50e9, 4),
    "v5p": Chip(459e12, 2765e9, int(95.74 * _GIB), 100e9, 6),
    "v6e": Chip(918e12, 1640e9, int(31.25 * _GIB), 100e9, 4),
    "h100": Chip(989.4e12, 3352e9, 84_942_979_072, 25e9, 18),
}


def chip_of(target: str) -> Chip:
    """The chip of a target such as ``v5e:4x4``.

    Raises:
      ValueError: none is known by that name.
    """
    kind = target.partition(":")[0]
    if kind not in CHIPS:
        raise ValueError(f"chips are known of {', '.join(CHIPS)}, got {target!r}.")
    return CHIPS[kind]


def links_of(target: str) -> int:
    """How many links to others a chip in the midst of a target has."""
    chip, (kind, _, shape) = chip_of(target), target.partition(":")
    if kind == "h100":
        return chip.links if int(shape or 1) > 1 else 0
    sizes = [int(size) for size in re.findall(r"\d+", shape)]
    return min(chip.links, sum(min(size - 1, 2) for size in sizes))
