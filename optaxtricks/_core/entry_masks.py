"""Masks of entries as callers give them, matched to leaves by path.

By path rather than by tree structure, as `nnx.Optimizer` passes Variables to `init`
and arrays to `update`, and a mask may come from either.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .layers import layer_seen
from .paths import below, holes, leaves_with_paths, listing, nearest, table_of

Entry: TypeAlias = bool | tuple[int, ...]
"""What a mask says of a leaf: all of it, none of it, or a bool array of this shape,
which is the leaf's or has axes of size 1 in it."""


class EntryMask:
    """The layout of a checked mask: the entry at each of its paths."""

    def __init__(self, mask: Any):
        found = leaves_with_paths(mask)
        if not found:
            raise ValueError("mask is empty: it holds neither bools nor bool arrays.")
        entries = [(path, _entry(path, value)) for path, value in found]
        self._table = table_of(entries, name="mask")

    def entries(self, tree: Any) -> list[Entry]:
        """What the mask says of each leaf of `tree`, in leaf order.

        Raises:
          ValueError: a leaf that the mask does not cover, or to whose shape its array
            does not broadcast.
        """
        found = []
        for path, leaf in leaves_with_paths(tree):
            entry, shape = self._find(path), jnp.shape(leaf)
            if not isinstance(entry, bool) and not _broadcasts(entry, shape):
                raise ValueError(
                    f"mask at {path!r}: expected shape {shape}, got {entry}"
                    f"{_remedy(path, entry, shape)}."
                )
            found.append(entry)
        return found

    @property
    def freezes_some(self) -> bool:
        """Whether it says `False` anywhere."""
        return any(entry is False for entry in self._table.values())

    def freezes(self, path: str) -> bool:
        """Whether it covers a leaf and says `False` of it."""
        try:
            return self._find(path) is False
        except ValueError:
            return False

    def check(self, params: Any) -> None:
        """Rejects parameters that the mask does not fit, naming the leaf."""
        self.entries(params)
        leaves, gaps = leaves_with_paths(params), holes(params)
        known = [path for path, _ in leaves]
        idle = [path for path in self._table if not _met(path, known, gaps)]
        if leaves and idle:
            raise ValueError(
                f"mask entries that match no parameter: {listing(idle)}. Paths: "
                f"{listing(known + gaps)}."
            )

    def _find(self, path: str) -> Entry:
        prefix = nearest(self._table, path, name="mask")
        entry = self._table[prefix]
        if prefix != path and not isinstance(entry, bool):
            raise ValueError(
                f"mask at {prefix!r} is an array of shape {entry}, but there the "
                f"parameters have further leaves, such as {path!r}."
            )
        return entry


def mask_arrays(mask: Any) -> dict[str, jax.Array | np.ndarray]:
    """The bool arrays of a checked mask, by path."""
    found = leaves_with_paths(mask)
    return {path: value for path, value in found if not _is_bool(value)}


def check_made_with(
    found: Any, expected: Iterable[tuple[int, ...]], *, by: str
) -> None:
    """Rejects state whose arrays do not have the shapes that a mask leads to."""
    have = [tuple(x.shape) for x in found] if isinstance(found, tuple) else []
    if have != (want := list(expected)):
        raise ValueError(
            f"the state of {by} was made with another mask: this one needs arrays of "
            f"shapes {want} for these updates, the state has {have}."
        )


def leafless(tree: Any) -> bool:
    """Whether a tree has no leaves, as the placeholder of `optax.tree.map_params`.

    `map_params` calls `init` with it and takes the state as a prefix of the real
    one. State that is a tuple with one array a leaf is then given by a single array,
    since a leaf is a prefix of everything.
    """
    return not jax.tree.leaves(tree)


def negative_zero(like: Any) -> complex:
    """What changes nothing when it is added.

    x + -0.0 is x bit for bit; x + 0.0 is not, as it turns -0.0 into 0.0.
    """
    is_complex = jnp.issubdtype(jnp.result_type(like), jnp.complexfloating)
    return complex(-0.0, -0.0) if is_complex else -0.0


def unboxed(tree: Any) -> Any:
    """The tree with Flax Variables replaced by what they hold.

    A Variable carries metadata, such as a sharding by axis, about the array it
    holds, which is wrong for a vector of some of its entries.
    """
    return jax.tree.map(
        lambda node: jax.tree.leaves(node)[0] if is_box(node) else node,
        tree,
        is_leaf=is_box,
    )


def is_box(node: Any) -> bool:
    """Whether a node's only child is a leaf called `value`, as a Variable's is."""
    children = jax.tree.leaves_with_path(node, is_leaf=lambda x: x is not node)
    if len(children) != 1:
        return False
    (path, child), value = children[0], jax.tree_util.GetAttrKey("value")
    return path == (value,) and jax.tree_util.all_leaves([child])


def _entry(path: str, value: Any) -> Entry:
    if _is_bool(value):
        return bool(value)
    if not isinstance(value, jax.Array | np.ndarray) or value.dtype != bool:
        what = getattr(value, "dtype", None) or type(value).__name__
        raise TypeError(
            f"mask must hold Python bools and bool arrays, but its leaf at {path!r} "
            f"is {what}."
        )
    return value.shape


def _broadcasts(entry: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether an array stands for one of another shape, axis by axis."""
    pairs = zip(entry, shape, strict=False)
    return len(entry) == len(shape) and all(n in (1, size) for n, size in pairs)


def _remedy(path: str, entry: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What to do about an array that does not broadcast."""
    if len(entry) > len(shape) and layer_seen(path) is not None:
        return ", as per_layer shows one layer; a mask of all goes outside of it"
    if not entry:
        return "; for all or nothing of a leaf give True or False"
    if len(entry) < len(shape):
        return "; write out its axes of size 1, as (n, 1) and (1, n) are not the same"
    if len(entry) == len(shape) and jax.sharding.get_abstract_mesh().manual_axes:
        return (
            "; inside jax.shard_map a leaf is a block: act outside of it, on whole "
            "arrays under jax.jit, or build keep_entries inside, from the mask's block"
        )
    return "; only axes of size 1 broadcast"


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _met(entry: str, leaves: Sequence[str], gaps: Sequence[str]) -> bool:
    """Whether an entry stands at or above a leaf, or where leaves were taken out."""
    reached = any(below(path, [entry]) for path in (*leaves, *gaps))
    return reached or below(entry, gaps)
