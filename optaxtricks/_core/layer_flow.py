"""What depends on what in an optimizer that sees one layer of a stack at a time.

Read off the traced `init` and `update`: which parts of the state come to differ between
layers; and what must not be, one tensor's update that depends on another tensor, or
random numbers that all layers would share.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .data_flow import sources

OUTSIDE = (
    "Inside per_layer a transformation sees one tensor at a time; put what looks at "
    "several of them, such as optax.clip_by_global_norm, outside of it."
)


class LayerFlow:
    """Dependencies after any number of steps.

    They are sets of bits, a bit for each group of layers, each tensor, and each part of
    the state as `init` makes it, in this order.

    Args:
      paths: the paths of all leaves.
      groups: for each leaf, its group of layers; None for a leaf that is no stack.
      first: the traced `init`, from the numbers of the groups' layers and the leaves.
      step: the traced `update`, from gradients, parts of the state and parameters; None
        if it could not be traced, and then only `first` is known.
    """

    def __init__(
        self, paths: Sequence[str], groups: Sequence[int | None], first: Any, step: Any
    ):
        self._paths, self._groups = paths, groups
        self._count = len(first.in_avals) - len(paths)
        layers = [1 << group for group in range(self._count)]
        tensors = [
            self._tensor(number) | (0 if group is None else 1 << group)
            for number, group in enumerate(groups)
        ]
        made = sources(first, layers + tensors)
        parts = [mark | self._part(number) for number, mark in enumerate(made)]
        updates: list[int] = []
        known: list[int] | None = None
        while step is not None and parts != known:
            known = parts
            found = sources(step, [*tensors, *parts, *tensors])
            updates, after = found[: len(paths)], found[len(paths) :]
            parts = [old | new for old, new in zip(parts, after, strict=True)]
        self._parts, self._updates = parts, updates

    def groups(self) -> list[int | None]:
        """The group on whose layers each part of the state depends."""
        return [self._only(marks) for marks in self._parts]

    def check(self, parts: Sequence[tuple[str, Any]]) -> None:
        """Rejects an inner transformation that means another thing layer by layer."""
        self._check_keys(parts)
        everything = ((1 << len(self._paths)) - 1) << self._count
        for number, marks in enumerate(self._updates):
            if not (found := marks & everything & ~self._tensor(number)):
                continue
            others = [i for i in range(len(self._paths)) if found & self._tensor(i)]
            mixed = [
                self._paths[i]
                for i in others
                if {self._groups[number], self._groups[i]} != {None}
            ]
            if mixed:
                raise ValueError(
                    f"inner takes tensors together: its update at "
                    f"{self._paths[number]!r} depends on {mixed[0]!r}, and one of them "
                    f"is a stack, or both are. {OUTSIDE}"
                )

    def _check_keys(self, parts: Sequence[tuple[str, Any]]) -> None:
        shared = [
            (path, self._part(number))
            for number, (path, value) in enumerate(parts)
            if _may_be_key(value) and not self._parts[number] & (1 << self._count) - 1
        ]
        for leaf, group, marks in zip(
            self._paths, self._groups, self._updates, strict=False
        ):
            for path, bit in shared:
                if group is not None and marks & bit:
                    raise ValueError(
                        f"inner draws random numbers from its state at {path!r}, which "
                        f"would be the same in every layer of {leaf!r}: put it outside "
                        "of per_layer."
                    )

    def _only(self, marks: int) -> int | None:
        found = [group for group in range(self._count) if marks >> group & 1]
        if len(found) > 1:
            raise ValueError(
                "inner keeps a number over stacks of different lengths together. "
                + OUTSIDE
            )
        return found[0] if found else None

    def _tensor(self, number: int) -> int:
        return 1 << self._count + number

    def _part(self, number: int) -> int:
        return 1 << self._count + len(self._paths) + number


def _may_be_key(value: Any) -> bool:
    """Whether a part of a state may be a random key, typed or of raw words."""
    raw = value.dtype == np.uint32 and value.shape in ((2,), (4,))
    return raw or jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
