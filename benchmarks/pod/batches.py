"""Batches as a function of the step."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class Batches:
    """Batches by the number of a step; a process reads its own rows alone.

    Args:
      train: all examples; `train[numbers]` gives arrays by name, `len` their number.
      like: a batch as shapes, dtypes and shardings.
      seed: of the order.
    """

    def __init__(
        self, train: Any, like: Mapping[str, jax.ShapeDtypeStruct], *, seed: int
    ):
        self._train, self._like, self._seed = train, like, seed
        first = next(iter(like.values()))
        self._size = first.shape[0]
        shards = first.sharding.addressable_devices_indices_map(first.shape).values()
        held = (shard[0] for shard in shards if shard is not None)
        self._rows = np.unique(np.concatenate([np.arange(self._size)[h] for h in held]))
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, step: int) -> dict[str, jax.Array]:
        """The batch of a step, counted from 0."""
        parts = self._train[self.numbers(step)[self._rows]]
        return {name: self._placed(name, part) for name, part in parts.items()}

    def _placed(self, name: str, part: np.ndarray) -> jax.Array:
        like = self._like[name]

        def shard(index: Any) -> np.ndarray:
            rows = np.arange(self._size)[index[0]]
            return part[(np.searchsorted(self._rows, rows), *index[1:])]

        return jax.make_array_from_callback(like.shape, like.sharding, shard)

    def numbers(self, step: int) -> np.ndarray:
        """Which examples make up a batch: epoch after epoch, each in its own order."""
        places = step * self._size + np.arange(self._size)
        epochs, places = np.divmod(places, len(self._train))
        orders = {int(epoch): self._permutation(int(epoch)) for epoch in epochs}
        return np.array(
            [orders[int(e)][p] for e, p in zip(epochs, places, strict=True)]
        )

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            rng = np.random.default_rng([self._seed, 0, epoch])
            self._order = epoch, rng.permutation(len(self._train))
        return self._order[1]
