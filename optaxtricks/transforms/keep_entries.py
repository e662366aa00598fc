"""A fixed mask of entries: what it does not keep never moves."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.bit_packing import PackedMask, packed_shape, unpack
from .._core.build import transformation
from .._core.entry_masks import (
    EntryMask,
    check_made_with,
    leafless,
    mask_arrays,
    negative_zero,
)
from .._core.frozen_leaves import check_masked_leaves, filled, nothing_for
from .._core.layers import layer_count
from .._core.paths import leaves_with_paths, path_order
from .._core.scaling import scaled
from .._core.serialized import serialized_state


@serialized_state
class KeepEntriesState(NamedTuple):
    """State of :func:`keep_entries`.

    Attributes:
      bits: for each leaf with a mask array, in the order of their paths as strings,
        the array as uint8, eight entries to a byte along one axis; one that
        broadcasts, without its last axes of size 1.
      factor: scalar, one over the fraction of entries kept over those leaves;
        ``None`` without ``rescale``.
    """

    bits: tuple[jax.Array, ...] | jax.Array
    factor: jax.Array | None


def keep_entries(
    mask: Any, *, rescale: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Lets only the entries of a fixed mask through (Child-Tuning-D, FISH mask).

    .. math::
        u_i \leftarrow M_i u_i \qquad \text{or, with rescale,} \qquad
        u_i \leftarrow M_i u_i / \bar M,

    where :math:`\bar M` is the kept fraction of all entries of leaves under mask
    arrays. Ahead of an optimizer it masks gradients, and weight decay still moves
    every entry; behind it, complete updates. :func:`child_tuning_d` does both.

    A mask array has its leaf's shape, or size 1 in place of some of its sizes: of a
    stack of ``L`` layers, bools of shape ``(L, 1, 1)`` keep whole layers, and of a
    table ``(n, 1)`` whole rows. It has an axis for each of the leaf's, as whether
    ``(n,)`` means rows or columns would be a guess.

    The mask lies in the state, so a checkpoint brings its own mask back: to resume,
    build the chain with any mask that has arrays of the same shapes at the same
    leaves. In the state it takes one bit for each entry of the array, in whole bytes
    along one axis, unpacked in the optimizer's own loop: layers cost ``ceil(L / 8)``
    bytes.

    Ahead of Adam on float16 parameters its ``eps`` of 1e-8 is 0, and an entry that is
    not kept comes to 0 / 0: give it ``eps=1e-4``, or keep parameters in float32.

    Guarantees:
      - Entries that are not kept get -0.0, also where the update is NaN. That is the
        one value whose addition leaves every float as it is, bit for bit (but for
        subnormal ones, where the device flushes these to zero in any addition).
      - Kept entries, and leaves under ``True``, pass bit for bit without ``rescale``.
      - A leaf under ``False`` may be of any numbers, as the codes of a quantized
        backbone are, and have any gradient but a :class:`RowSparse`: ``None`` too, or
        the ``float0`` that ``jax.grad`` with ``allow_int`` gives for an integer. Its
        update is zeros of its own dtype, which ``optax.apply_updates`` adds without
        changing a bit.
      - An array that broadcasts acts as its ``np.broadcast_to`` copy, bit for bit.
      - No communication on any sharding, and no temporary array, but a byte at most
        for each entry of an array that broadcasts.
      - The state shares no buffer with ``mask``.

    Args:
      mask: a tree laid out like the parameters, or a prefix of it, of bool arrays
        (:func:`top_fraction_mask` gives one) and Python bools: ``True`` lets a whole
        leaf or subtree through, ``False`` freezes it, and neither takes up state.
        Leaves are matched by path. Under ``optax.inject_hyperparams`` list ``mask``
        in ``static_args``.
      rescale: divide kept entries under mask arrays by the kept fraction.

    Returns:
      A transformation whose state is a :class:`KeepEntriesState`.

    Raises:
      ValueError: ``mask`` is empty; ``rescale`` while no entry is kept; from
        ``init``, a leaf that the mask does not cover, a shape that does not
        broadcast, or a mask entry without parameters.
      ValueError: from ``update``, no ``params`` where a gradient is ``float0``.
      TypeError: ``mask`` holds anything but bools and bool arrays, or traced ones with
        ``rescale``; from ``init``, an integer leaf that is not under ``False``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> tx = ot.keep_entries({"w": jnp.array([True, False]), "b": False})
      >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.ones(1)}
      >>> kept, _ = tx.update(grads, tx.init(grads))
      >>> kept["w"].tolist(), kept["b"].tolist()
      ([3.0, -0.0], [-0.0])
      >>> layers = jnp.array([True, False]).reshape(2, 1, 1)
      >>> tx, grads = ot.keep_entries(layers), jnp.ones((2, 3, 4))
      >>> state = tx.init(grads)
      >>> tx.update(grads, state)[0].sum((1, 2)).tolist(), state.bits[0].tolist()
      ([12.0, 0.0], [1])

    References:
      Xu et al., 2021, `Raise a Child in Large Language Model
      <https://arxiv.org/abs/2109.05687>`_ (code: alibaba/AliceMind, the mask times
      the gradient, not rescaled). Sung et al., 2021, `Training Neural Networks with
      Fixed Sparse Masks <https://arxiv.org/abs/2111.09839>`_ (code:
      varunnair18/FISH, after the backward pass and before clipping).
    """
    checks.flag(rescale=rescale)
    layout = EntryMask(mask)
    arrays = mask_arrays(mask)
    counts = _kept_counts(arrays) if rescale else {}
    packed = {path: PackedMask(array) for path, array in arrays.items()}
    del arrays, mask

    def init(params: optax.Params) -> KeepEntriesState:
        check_masked_leaves(params, layout, by="keep_entries")
        layout.check(params)
        found = leaves_with_paths(params)
        masked = [found[i] for i in path_order(params) if found[i][0] in packed]
        bits = [packed[path].placed_like(leaf) for path, leaf in masked]
        factor = _one_over_kept_fraction(counts, masked) if rescale else None
        return KeepEntriesState(
            bits=jnp.zeros((), jnp.uint8) if leafless(params) else tuple(bits),
            # The widest float: a rounded factor would show in float64 updates.
            factor=jnp.asarray(factor, jnp.result_type(float)) if rescale else None,
        )

    def update(
        updates: optax.Updates,
        state: KeepEntriesState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, KeepEntriesState]:
        del extra_args
        update_checks.state_of(KeepEntriesState, state, by="keep_entries")
        check_masked_leaves(updates, layout, by="keep_entries")
        updates = filled(updates, params, layout, by="keep_entries")
        leaves, structure = jax.tree.flatten(updates)
        entries = layout.entries(updates)
        shapes = {
            i: packed_shape(entry, jnp.shape(leaves[i]))
            for i in path_order(updates)
            if not isinstance(entry := entries[i], bool)
        }
        check_made_with(state.bits, shapes.values(), by="keep_entries")
        bits = dict(zip(shapes, state.bits if shapes else (), strict=True))
        out = [
            _whole(leaf, entry)
            if isinstance(entry, bool)
            else _masked(leaf, bits[i], state.factor, shape=entry)
            for i, (leaf, entry) in enumerate(zip(leaves, entries, strict=True))
        ]
        return jax.tree.unflatten(structure, out), state

    return transformation(init, update)


def _whole(update: jax.Array, kept: bool) -> jax.Array:
    return update if kept else nothing_for(update)


# Jitted, so that leaves of one shape share one trace.
@partial(jax.jit, static_argnames="shape")
def _masked(
    update: jax.Array,
    bits: jax.Array,
    factor: jax.Array | None,
    *,
    shape: tuple[int, ...],
) -> jax.Array:
    # A product: XLA may turn a division into one, and jit would differ from eager.
    kept = update if factor is None else scaled(update, factor)
    return jnp.where(unpack(bits, shape, update), kept, negative_zero(update))


def _kept_counts(arrays: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """How many entries each mask array keeps, and how many it has."""
    if any(isinstance(array, jax.core.Tracer) for array in arrays.values()):
        raise TypeError("rescale=True needs a concrete mask, but it is traced.")
    counts = {p: (int(np.count_nonzero(x)), x.size) for p, x in arrays.items()}
    if not any(kept for kept, _ in counts.values()):
        raise ValueError("rescale=True needs a mask array that keeps some entry.")
    return counts


def _one_over_kept_fraction(
    counts: Mapping[str, tuple[int, int]], masked: Sequence[tuple[str, Any]]
) -> float:
    """Of all entries of the leaves under mask arrays; a layer counts for its stack."""
    sizes = [
        (math.prod(jnp.shape(leaf)) * layer_count(path), *counts[path])
        for path, leaf in masked
    ]
    kept = sum(size // max(of, 1) * count for size, count, of in sizes)
    return sum(size for size, _, _ in sizes) / kept if kept else 1.0
