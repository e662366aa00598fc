"""The machines that programs are compiled for."""

import dataclasses
import functools
import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_TPU = re.compile(r"(?:v\d\w?|tpu7x):\d+x\d+(?:x\d+)?")
# GpuTargetConfigProto of each card, from its data sheet.
_CARDS = {"h100": pathlib.Path(__file__).with_name("h100.txt")}
_CARD = re.compile(r"h100(?::[1-8])?")
# Without these the compiler takes a chip of v4 for two devices, and a slice of one chip
# for a part of a host.
_TOPOLOGY_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
_SINGLE_CHIPS = ("v5e:1x1", "v6e:1x1")
# What libtpu reads when it is loaded: to look for no device, to load a second time in
# another process, and to be quiet.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
# What must be installed, and what loads it.
_PACKAGES = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}


@dataclasses.dataclass(frozen=True)
class Target:
    """A machine by its name: ``h100:8``, or a TPU topology such as ``v5e:2x2``."""

    name: str

    def __post_init__(self) -> None:
        if not (_CARD.fullmatch(self.name) or _TPU.fullmatch(self.name)):
            raise ValueError(
                "target must be h100, as many as h100:8, or a TPU topology such as "
                f"v5e:2x2, v5p:2x2x1, v6e:16x16 or tpu7x:2x2x1, got {self.name!r}."
            )

    @property
    def platform(self) -> str:
        """Its compiler: "cuda" or "tpu"."""
        return "cuda" if _CARD.fullmatch(self.name) else "tpu"

    def mesh(self) -> Mesh:
        """All its devices, on axes "x" and "y" of about one length."""
        count = len(self.devices())
        rows = max(d for d in range(1, math.isqrt(count) + 1) if not count % d)
        grid = np.asarray(self.devices()).reshape(rows, -1)
        return Mesh(grid, ("x", "y"), axis_types=(AxisType.Auto,) * 2)

    def devices(self) -> list[Any]:
        """All its devices.

        Raises:
          ModuleNotFoundError: the compiler is not installed.
          ValueError: the compiler knows no such topology.
        """
        return _devices(self.name, self.platform)


@functools.lru_cache
def _devices(name: str, platform: str) -> list[Any]:
    package = _PACKAGES[platform]
    if not _is_installed(package):
        raise ModuleNotFoundError(
            f"{package} is not installed, without which nothing compiles for {name}. "
            "Run `make compiled`, or `pip install 'optaxtricks[compiled]'`."
        )
    options: dict[str, Any]
    kind, _, size = name.partition(":")
    if platform == "tpu":
        os.environ |= _LIBTPU
        options = {"topology_name": name, **_TOPOLOGY_OPTIONS.get(kind, {})}
        if name in _SINGLE_CHIPS:
            options["chips_per_host_bounds"] = (1, 1, 1)
    else:
        card = _CARDS[kind].read_text()
        options = {"target_config": card, "topology": f"1x1x{size or 1}"}
    try:
        return topologies.get_topology_desc(platform=platform, **options).devices
    except Exception as error:  # whatever the compiler raises
        raise ValueError(f"no compiler takes the topology {name!r}: {error}") from error


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def divided(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Where an array lies: its first axis over "x", its last over "y", if they divide.

    Vectors lie over "y" alone, as the columns of their matrices do.
    """
    axes: list[str | None] = [None] * len(shape)
    for place, axis in ((0, "x"), (-1, "y")):
        if (len(shape) > 1 or place) and shape and shape[place] % mesh.shape[axis] == 0:
            axes[place] = axis
    return NamedSharding(mesh, PartitionSpec(*axes))


def placed(mesh: Mesh, shapes: Mapping[str, tuple[int, ...]], dtype: Any) -> Any:
    """Abstract arrays of these shapes, divided over a mesh."""
    return {
        path: jax.ShapeDtypeStruct(shape, dtype, sharding=divided(mesh, shape))
        for path, shape in shapes.items()
    }
