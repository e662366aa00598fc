"""A fixed mask of entries: what it does not keep never moves."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.bit_packing import pack, packed_shape, placed_like, unpack
from .._core.build import transformation
from .._core.entry_masks import (
    EntryMask,
    check_made_with,
    leafless,
    mask_arrays,
    negative_zero,
)
from .._core.paths import leaves_with_paths
from .._core.scaling import scaled


class KeepEntriesState(NamedTuple):
    """State of :func:`keep_entries`.

    Attributes:
      bits: for each leaf with a mask array, in leaf order, the mask as uint8, eight
        entries to a byte along one axis.
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

    where :math:`\bar M` is the kept fraction of all entries under mask arrays. Ahead
    of an optimizer it masks gradients, and weight decay still moves every entry;
    behind it, complete updates. :func:`child_tuning_d` does both.

    The mask lies in the state, so a checkpoint brings its own mask back: to resume,
    build the chain with any mask that has arrays at the same leaves. In the state it
    takes one bit an entry, unpacked in the optimizer's own loop.

    Guarantees:
      - Entries that are not kept get -0.0, also where the update is NaN. That is the
        one value whose addition leaves every float as it is, bit for bit (but for
        subnormal ones, where the device flushes these to zero in any addition).
      - Kept entries, and leaves under ``True``, pass bit for bit without ``rescale``.
      - No communication on any sharding, and no temporary array.
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
        ``init``, a leaf that the mask does not cover, another shape, or a mask entry
        without parameters.
      TypeError: ``mask`` holds anything but bools and bool arrays; from ``init``, an
        integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> tx = ot.keep_entries({"w": jnp.array([True, False]), "b": False})
      >>> grads = {"w": jnp.array([3.0, 4.0]), "b": jnp.ones(1)}
      >>> kept, _ = tx.update(grads, tx.init(grads))
      >>> kept["w"].tolist(), kept["b"].tolist()
      ([3.0, -0.0], [-0.0])

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
    scale = _one_over_kept_fraction(arrays) if rescale else None
    packed = {path: pack(array) for path, array in arrays.items()}
    del arrays, mask

    def init(params: optax.Params) -> KeepEntriesState:
        checks.inexact_leaves(params, by="keep_entries")
        layout.check(params)
        # The widest float there is: a rounded factor would show in float64 updates.
        wide = jnp.result_type(float)
        found = leaves_with_paths(params)
        bits = [placed_like(packed[p], leaf) for p, leaf in found if p in packed]
        return KeepEntriesState(
            bits=jnp.zeros((), jnp.uint8) if leafless(params) else tuple(bits),
            factor=None if scale is None else jnp.asarray(scale, wide),
        )

    def update(
        updates: optax.Updates,
        state: KeepEntriesState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, KeepEntriesState]:
        del params, extra_args
        update_checks.state_of(KeepEntriesState, state, by="keep_entries")
        checks.inexact_leaves(updates, by="keep_entries")
        leaves, structure = jax.tree.flatten(updates)
        entries = layout.entries(updates)
        masked = [entry for entry in entries if not isinstance(entry, bool)]
        check_made_with(state.bits, map(packed_shape, masked), by="keep_entries")
        left = iter(state.bits if masked else ())
        out = [
            _whole(leaf, entry)
            if isinstance(entry, bool)
            else _masked(leaf, next(left), state.factor)
            for leaf, entry in zip(leaves, entries, strict=True)
        ]
        return jax.tree.unflatten(structure, out), state

    return transformation(init, update)


def _whole(update: jax.Array, kept: bool) -> jax.Array:
    return update if kept else jnp.full_like(update, negative_zero(update))


# Jitted, so that leaves of one shape share one trace.
@jax.jit
def _masked(update: jax.Array, bits: jax.Array, factor: jax.Array | None) -> jax.Array:
    # A product: XLA may turn a division into one, and jit would differ from eager.
    kept = update if factor is None else scaled(update, factor)
    return jnp.where(unpack(bits, update), kept, negative_zero(update))


def _one_over_kept_fraction(arrays: Mapping[str, Any]) -> float:
    if any(isinstance(array, jax.core.Tracer) for array in arrays.values()):
        raise TypeError("rescale=True needs a concrete mask, but it is traced.")
    kept = sum(int(np.count_nonzero(array)) for array in arrays.values())
    total = sum(array.size for array in arrays.values())
    if not kept:
        raise ValueError("rescale=True needs a mask array that keeps some entry.")
    return total / kept
