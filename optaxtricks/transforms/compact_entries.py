"""An optimizer whose state exists only for the entries that a mask keeps."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.alignment import params_like
from .._core.build import transformation
from .._core.entry_masks import EntryMask, check_made_with, leafless, unboxed
from .._core.frozen_leaves import check_masked_leaves, filled, nothing_for
from .._core.kept_entries import KeptEntries, kept_entries
from .._core.leaf_rules import made_from
from .._core.paths import leaves_with_paths, path_order
from .._core.serialized import serialized_state

# All of a leaf, nothing, or some entries.
_Part: TypeAlias = bool | KeptEntries
# Of leaves of which there is a part, by the number of the leaf.
_Indices: TypeAlias = dict[int, jax.Array]


@serialized_state
class CompactEntriesState(NamedTuple):
    """State of :func:`compact_entries`.

    Attributes:
      indices: for each leaf of which a mask array keeps a part, in the order of their
        paths as strings, the row-major positions of the kept entries, ascending: in
        the leaf, or in each of its blocks, whose grid is the shape of the first axes.
        In unsigned integers, and filled up with the size of a block. Where whole rows
        or tiles are kept, positions and sizes count those, and one axis of 1 or two end
        the shape.
      inner: the state of the wrapped optimizer, over arrays of what is kept.
    """

    indices: tuple[jax.Array, ...] | jax.Array
    inner: optax.OptState


def compact_entries(
    inner: optax.GradientTransformation, mask: Any
) -> optax.GradientTransformationExtraArgs:
    r"""Runs an optimizer on the kept entries alone: state for k entries, not for n.

    Of each leaf under a mask array the kept entries of gradient and parameter are
    gathered into one array, ``inner`` updates it, and the result is put back:

    .. math::
        u_{I} \leftarrow \mathrm{inner}(g_{I}, \theta_{I}), \qquad
        u_{\bar I} \leftarrow -0, \qquad I = \{i : M_i\}.

    For an element-wise ``inner`` this is :func:`child_tuning_d` with less state: with
    Adam 8 to :math:`12 k` bytes in place of :math:`8 n`. It saves memory at any kept
    fraction, and time below some, which depends on how the mask lies. A mask may keep

    - single entries. On a CPU a step of AdamW with 0.5 % kept takes 0.9 of the dense
      one, with 20 % 3.8 (``benchmarks.bench_state``). On an H100, by the bytes that
      its compiled steps move (``benchmarks.compiled``), the limit should lie at a
      third: this is reckoned, not timed. A TPU handles entries one by one; by the
      instructions of its kernels the limit on v5e is about 0.1 %, and 20 % take tens of
      dense steps, temporaries of two to four times the leaf, and half a minute to
      compile for a large one. Where time counts, take :func:`child_tuning_d` above
      that, or a mask of
    - whole tiles of 8 rows and 128 columns, as ``top_fraction_mask(...,
      granularity="tile")`` gives them, or whole rows of at least 128 entries. Where a
      mask keeps all of each or nothing they are moved as such; one entry that strays
      makes the leaf one of single entries. By its bytes a step costs no more than the
      dense one up to half of the tiles on an H100, and on v5e up to 15 % in float32,
      with temporaries of one leaf, and beyond 30 % in bfloat16. On a CPU it takes 1.3
      of the dense one's time with 20 % of the tiles.

    A leaf of some size is cut into a grid of equal blocks with a list of what is kept
    in each: arrays of the grid's shape and one axis more, as long as the fullest block
    needs, and behind it the axes of a tile or row. Sharding that divides blocks among
    devices divides lists and state with them, and then no entry leaves its device. The
    mask decides on the grid: it is as fine, up to 4096 blocks, as fills 80 % of all
    lists. Small leaves, or those of which the kept entries crowd in one corner, are one
    block with one list.

    ``inner`` sees the containers and paths of the parameters, so masks and labels by
    path work inside, but these arrays in place of matrices, with zeros where a list
    ends early: rules that look at the shape (``ndim > 1`` for weight decay, factored
    moments, trust ratios) or take means do not mean the same. A Flax Variable, whose
    metadata describes the whole array, is replaced by its value. Where the mask says
    ``False``, or an array keeps nothing, ``inner`` sees ``optax.MaskedNode``.
    ``optax.tree.map_params`` visits the arrays as if they were parameters.

    To resume from a checkpoint, build with the mask of the first run: its shapes
    decide on the shapes of the state. Save it beside the checkpoint.

    Guarantees:
      - For an element-wise ``inner`` kept entries move as they do without the mask; but
        compiled, sums and products may round otherwise, and where a list lies on other
        devices than its block, -0.0 may become 0.0.
      - Entries that are not kept get -0.0, which leaves every float as it is, and
        their gradients, NaN included, are never read.
      - A leaf under ``False`` may be of any numbers and have any gradient, as with
        :func:`keep_entries`.
      - The state shares no buffer with ``mask``.
      - Nothing travels between devices among which whole blocks are divided; of others
        the kept entries do.
      - ``init`` takes ``jax.ShapeDtypeStruct`` for parameters, as far as that of
        ``inner`` does: so ``nnx.Optimizer`` of an abstract model, to restore into.

    Args:
      inner: an element-wise optimizer; extra arguments are forwarded to it as they
        are.
      mask: as :func:`keep_entries` takes it, such as bools of shape ``(L, 1, 1)`` for
        whole layers, but never traced, as it decides on shapes. Leaves under ``True``
        reach ``inner`` whole, leaves under ``False`` not at all.

    Returns:
      A transformation whose state is a :class:`CompactEntriesState`.

    Raises:
      ValueError: as :func:`keep_entries`, and for a leaf of :math:`2^{31}` entries or
        more under a mask array.
      TypeError: as :func:`keep_entries`, and for a traced mask.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> mask = jnp.array([[True, False, False], [False, True, False]])
      >>> tx = ot.compact_entries(optax.trace(0.5), mask)
      >>> grads = jnp.arange(6.0).reshape(2, 3)
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> updates.tolist()
      [[0.0, -0.0, -0.0], [-0.0, 4.0, -0.0]]
      >>> state.inner.trace.tolist()
      [0.0, 4.0]

    References:
      Sung et al., 2021, `Training Neural Networks with Fixed Sparse Masks
      <https://arxiv.org/abs/2111.09839>`_: masks of 0.5 % of the entries.
    """
    checks.optimizer(inner=inner)
    inner = optax.with_extra_args_support(inner)
    layout = EntryMask(mask)
    kept = kept_entries(mask)
    del mask

    def parts_of(tree: Any) -> list[_Part]:
        found = zip(leaves_with_paths(tree), layout.entries(tree), strict=True)
        return [
            entry if isinstance(entry, bool) else _part(kept[path], leaf)
            for (path, leaf), entry in found
        ]

    def init(params: optax.Params) -> CompactEntriesState:
        check_masked_leaves(params, layout, by="compact_entries")
        layout.check(params)
        if leafless(params):
            return CompactEntriesState(jnp.zeros((), jnp.int32), inner.init(params))
        parts, leaves = parts_of(params), jax.tree.leaves(params)
        indices = {
            i: _placed_lists(part, leaves[i])
            for i in path_order(params)
            if not isinstance(part := parts[i], bool)
        }
        compact = _seen(params, parts, indices, jnp.int32)
        return CompactEntriesState(tuple(indices.values()), inner.init(compact))

    def update(
        updates: optax.Updates,
        state: CompactEntriesState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, CompactEntriesState]:
        update_checks.state_of(CompactEntriesState, state, by="compact_entries")
        check_masked_leaves(updates, layout, by="compact_entries")
        updates = filled(updates, params, layout, by="compact_entries")
        if params is not None:
            params = params_like(params, updates, by="compact_entries")
        parts, leaves = parts_of(updates), jax.tree.leaves(updates)
        shapes = {
            i: part.lists_shape(leaves[i])
            for i in path_order(updates)
            if not isinstance(part := parts[i], bool)
        }
        check_made_with(state.indices, shapes.values(), by="compact_entries")
        indices = dict(zip(shapes, state.indices if shapes else (), strict=True))
        compact = _seen(updates, parts, indices, jnp.int32)
        if params is not None:
            params = _seen(params, parts, indices, jnp.uint32)
        proposed, after = inner.update(compact, state.inner, params, **extra_args)
        out = _scattered(proposed, updates, parts, indices)
        return out, CompactEntriesState(indices=state.indices, inner=after)

    return transformation(init, update)


def _part(kept: KeptEntries, leaf: Any) -> _Part:
    # Nothing kept is no state: Orbax refuses to save arrays of size zero.
    return kept if math.prod(kept.lists_shape(leaf)) else False


def _placed_lists(kept: KeptEntries, leaf: Any) -> jax.Array:
    lists = jnp.array(kept.lists(leaf))
    there = kept.sharding(leaf) if isinstance(leaf, jax.Array) else None
    if there is None:
        return lists
    move = jax.sharding.reshard if isinstance(leaf, jax.core.Tracer) else jax.device_put
    return move(lists, there)


def _seen(tree: Any, parts: Sequence[_Part], indices: _Indices, index: Any) -> Any:
    """The tree that `inner` sees: lists of kept entries, whole leaves, holes."""
    leaves, structure = jax.tree.flatten(unboxed(tree))
    seen = [
        (leaf if part else optax.MaskedNode())
        if isinstance(part, bool)
        else made_from(leaf, partial(part.gathered, lists=indices[i], index=index))
        for i, (leaf, part) in enumerate(zip(leaves, parts, strict=True))
    ]
    return jax.tree.unflatten(structure, seen)


def _scattered(
    proposed: Any, like: Any, parts: Sequence[_Part], indices: _Indices
) -> Any:
    leaves, structure = jax.tree.flatten(like)
    lists, out = iter(jax.tree.leaves(proposed)), []
    for i, (leaf, part) in enumerate(zip(leaves, parts, strict=True)):
        if part is False:
            out.append(nothing_for(leaf))
        elif part is True:
            out.append(next(lists))
        else:
            out.append(part.scattered(next(lists), indices[i], jnp.asarray(leaf)))
    return jax.tree.unflatten(structure, out)
