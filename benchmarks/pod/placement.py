"""The mesh, and where on it a model's parameters, state and batches lie."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optaxtricks as ot

from ..finetune.errors import InputError

AXES = ("data", "model")
# Column after row: the first kernel of a pair is split by what it puts out, the second
# by what it takes in, so that the two need one sum between devices.
SPECS = {
    "columns": PartitionSpec(None, "model"),
    "rows": PartitionSpec("model", None),
    "entries": PartitionSpec("model"),
    "everywhere": PartitionSpec(),
}
RULES = {
    r"/(query|key|value|up)/kernel$": "columns",
    r"/(query|key|value|up)/bias$": "entries",
    r"/(output|down)/kernel$": "rows",
    r"word/embedding$": "columns",
}


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


def make_mesh(sizes: dict[str, int] | None) -> Mesh:
    """A mesh of all devices; without sizes all of them share the batch."""
    count = jax.device_count()
    sizes = sizes or {"data": count, "model": 1}
    if (product := int(np.prod(list(sizes.values())))) != count:
        shown = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        raise InputError(f"--mesh: {shown} is {product} devices, there are {count}.")
    shape = tuple(sizes[axis] for axis in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_shardings(params: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter; `params` may be abstract."""
    labels = ot.label_by_path(RULES, default="everywhere")(params)
    size = mesh.shape["model"]

    def place(label: str, leaf: Any) -> NamedSharding:
        for axis, name in enumerate(SPECS[label]):
            if name is not None and leaf.shape[axis] % size:
                raise InputError(
                    f"--mesh: model={size} does not divide axis {axis} of a parameter "
                    f"of shape {leaf.shape}."
                )
        return NamedSharding(mesh, SPECS[label])

    return jax.tree.map(place, labels, params)


class Batches:
    """Batches as a function of the step; a process reads its own rows alone."""

    def __init__(
        self,
        read: Callable[[np.ndarray], dict[str, np.ndarray]],
        *,
        examples: int,
        batch_size: int,
        seed: int,
        mesh: Mesh,
    ):
        if batch_size % mesh.shape["data"]:
            raise InputError(
                f"--batch-size: {batch_size} is not divisible by data="
                f"{mesh.shape['data']} of the mesh."
            )
        self._read, self._examples, self._seed = read, examples, seed
        self._batch_size = batch_size
        self._sharding = NamedSharding(mesh, PartitionSpec("data"))
        shards = self._sharding.addressable_devices_indices_map((batch_size,)).values()
        rows = [np.arange(batch_size)[shard] for shard in shards if shard is not None]
        self._rows = np.unique(np.concatenate(rows))
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, step: int) -> dict[str, jax.Array]:
        """The batch of a step, counted from 0."""
        numbers = self.numbers(step)[self._rows]
        return {
            name: jax.make_array_from_process_local_data(
                self._sharding, part, (self._batch_size, *part.shape[1:])
            )
            for name, part in self._read(numbers).items()
        }

    def numbers(self, step: int) -> np.ndarray:
        """Which examples make up a batch: epoch after epoch, each in its own order."""
        places = step * self._batch_size + np.arange(self._batch_size)
        epochs, places = np.divmod(places, self._examples)
        orders = {int(epoch): self._permutation(int(epoch)) for epoch in epochs}
        return np.array(
            [orders[int(e)][p] for e, p in zip(epochs, places, strict=True)]
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            rng = np.random.default_rng([self._seed, 0, epoch])
            self._order = epoch, rng.permutation(self._examples)
        return self._order[1]
