"""The mesh of a run's devices."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from ..finetune.errors import InputError
from .layout import AXES


def parse_mesh(text: str) -> dict[str, int]:
    """Sizes by axis, from a text such as ``data=4,model=2``."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"--mesh: must be like data=4,model=2 or data=8, got {text!r}."
            )
        sizes[name] = int(size)
    return {axis: sizes.get(axis, 1) for axis in AXES}


def make_mesh(
    sizes: dict[str, int] | None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of all devices, this machine's unless others are given.

    Without sizes all of them share the batch.
    """
    devices = jax.devices() if devices is None else devices
    sizes = sizes or {"data": len(devices), "model": 1}
    if (product := math.prod(sizes.values())) != len(devices):
        shown = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise InputError(
            f"--mesh: {shown} is {product} devices, there are {len(devices)}."
        )
    shape, kinds = tuple(sizes[axis] for axis in AXES), (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
