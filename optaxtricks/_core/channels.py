"""Channels: the axes of tensors that count them, their scores, and the best of them.

An axis here is one of a tensor: of a leaf or, where the leaf is a stack, of a layer.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .known_paths import known_paths
from .paths import leaves_with_paths, listing, table_of
from .selectors import compiled


class Tensors(NamedTuple):
    """One leaf: a tensor, or a stack of them along the axis `layer`."""

    path: str
    leaf: Any
    layer: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one tensor."""
        whole = enumerate(np.shape(self.leaf))
        return tuple(size for i, size in whole if i != self.layer)

    @property
    def layers(self) -> int | None:
        """How many layers a stack has."""
        return None if self.layer is None else np.shape(self.leaf)[self.layer]


class Place(NamedTuple):
    """An axis of the tensors of a leaf."""

    number: int
    axis: int


def places_of(
    patterns: Mapping[str, int], leaves: Sequence[Tensors], what: str
) -> list[Place]:
    """All places that the patterns name."""
    places = []
    for pattern, axis in patterns.items():
        search = compiled(pattern, name=what).search
        hits = [i for i, leaf in enumerate(leaves) if search(leaf.path)]
        if not hits:
            paths = known_paths([leaf.path for leaf in leaves], pattern)
            raise ValueError(f"{what}: {pattern!r} matches no leaf. {paths}")
        for i in hits:
            ndim = len(leaves[i].shape)
            if not -ndim <= axis < ndim:
                stack = leaves[i].layer is not None
                raise ValueError(
                    f"{what}: axis {axis} is out of range for the "
                    f"{'layers' if stack else 'leaf'} at {leaves[i].path!r} of shape "
                    f"{leaves[i].shape}."
                )
            places.append(Place(i, int(axis) % ndim))
    return places


def check_places(
    places: Sequence[Place],
    leaves: Sequence[Tensors],
    earlier: Collection[Place],
    where: str,
) -> None:
    """Rejects an axis that is named twice, and axes of different sizes."""
    seen = set(earlier)
    for place in places:
        if place in seen:
            raise ValueError(
                f"{where}: axis {place.axis} of the leaf at "
                f"{leaves[place.number].path!r} is named twice, here or in an earlier "
                "group; one decision can cut it."
            )
        seen.add(place)
    sizes = {(leaves[i].path, axis): leaves[i].shape[axis] for i, axis in places}
    if len(set(sizes.values())) > 1:
        shown = "; ".join(
            f"{path!r} axis {axis}: {size}" for (path, axis), size in sizes.items()
        )
        raise ValueError(f"{where} has axes of different sizes: {shown}.")


def layers_apart(
    places: Sequence[Place], leaves: Sequence[Tensors], where: str
) -> bool:
    """Whether all places are in stacks, so that each layer can decide for itself."""
    counts = {leaves[i].path: leaves[i].layers for i, _ in places}
    if None in counts.values():
        return False
    if len(set(counts.values())) > 1:
        shown = "; ".join(f"{path!r}: {count}" for path, count in counts.items())
        raise ValueError(f"{where} has stacks of different numbers of layers: {shown}.")
    return True


def importance_of(importance: Any, leaves: Sequence[Tensors]) -> dict[str, Any]:
    """Importance by path, laid out as the backbone wherever it has a leaf."""
    found = leaves_with_paths(importance)
    shapes = {leaf.path: np.shape(leaf.leaf) for leaf in leaves}
    if strange := [path for path, _ in found if path not in shapes]:
        raise ValueError(
            f"importance has leaves that backbone has not: {listing(strange)}. Paths "
            f"of backbone: {listing(shapes)}."
        )
    for path, leaf in found:
        if np.shape(leaf) != shapes[path]:
            raise ValueError(
                f"importance at {path!r} has shape {np.shape(leaf)}, but backbone has "
                f"{shapes[path]}."
            )
    return table_of(found, name="importance")


def channel_sums(leaf: Tensors, axis: int, importance: Mapping[str, Any]) -> np.ndarray:
    """Importance of a member summed over all axes but `axis`: a row for each tensor."""
    path = leaf.path
    if path not in importance:
        raise ValueError(f"importance has no leaf at {path!r}, which is a member.")
    if isinstance(importance[path], jax.core.Tracer):
        raise TypeError(
            f"importance must be concrete, but the leaf at {path!r} is traced: prune "
            "outside of jit."
        )
    array = np.asarray(importance[path])
    if not (jnp.issubdtype(array.dtype, np.floating) or array.dtype.kind in "iu"):
        raise TypeError(
            f"importance must be of real numbers, but the leaf at {path!r} has dtype "
            f"{array.dtype}."
        )
    if not (array >= 0).all():
        nans, negative = int(np.isnan(array).sum()), int((array < 0).sum())
        raise ValueError(
            f"importance must be non-negative, but the leaf at {path!r} has {nans} NaN "
            f"and {negative} negative entries."
        )
    array = array[None] if leaf.layer is None else np.moveaxis(array, leaf.layer, 0)
    others = tuple(i for i in range(array.ndim - 1) if i != axis)
    rows = np.empty((len(array), array.shape[1 + axis]))
    for row, tensor in zip(rows, array, strict=True):
        # In one order of adding up, wherever the layer axis is.
        np.ascontiguousarray(tensor).sum(axis=others, dtype=np.float64, out=row)
    return rows


def best_channels(
    scores: np.ndarray, fraction: float, heads: int | None, where: str
) -> np.ndarray:
    """Ascending indices of the channels to keep, for each row of scores."""
    blocks, (rows, size) = heads or 1, scores.shape
    if size % blocks:
        raise ValueError(f"{where}: heads={heads} does not divide its {size} channels.")
    width = size // blocks
    count = round(fraction * width)
    if count == 0:
        inside = f" in each of {heads} heads" if heads else ""
        raise ValueError(
            f"{where}: keep_fraction={fraction} of {width} channels{inside} leaves "
            "none."
        )
    table = scores.reshape(rows, blocks, width)
    order = np.argsort(-table, axis=-1, kind="stable")[..., :count]
    first = width * np.arange(blocks)[:, None]
    return (np.sort(order, axis=-1) + first).reshape(rows, blocks * count)
