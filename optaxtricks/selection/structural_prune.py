"""A narrow copy of a network: its most important channels, cut out of every leaf."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._core import checks
from .._core.channels import (
    Place,
    Tensors,
    best_channels,
    channel_sums,
    check_places,
    importance_of,
    layers_apart,
    places_of,
)
from .._core.layers import Stacked, layer_axes
from .._core.paths import leaves_with_paths
from .._core.selectors import compiled
from .._core.shardings import taken, taken_by_layer


@dataclasses.dataclass(frozen=True)
class PruneGroup:
    """Axes of leaves that are cut alike, for :func:`structural_prune`.

    A pattern is a regular expression searched in the leaf's path, a number at its end
    being a whole one (see :func:`select`), and may match several leaves. An axis counts
    from 0, or from -1 backwards; of a stack it is one of a layer, so that a group
    serves layers in a list and layers in a stack.

    Args:
      members: pattern -> axis, of the leaves whose importance makes the score.
      followers: pattern -> axis, of leaves that are cut along with the members but
        have no say: the scale of a layer norm, the input axis of the next layer.
      heads: H when the n channels are H equal blocks, one a head, that must all be
        cut to one size. None where heads have an axis of their own, as in Flax's
        attention kernels of shape (features, heads, head size).

    Raises:
      TypeError: a pattern that is no string, an axis or ``heads`` that is no int.
      ValueError: no member, an invalid pattern, or ``heads`` below 1.

    Examples:
      >>> import optaxtricks as ot
      >>> ot.PruneGroup({"(query|key)/kernel": -1}, heads=2).members
      {'(query|key)/kernel': -1}
    """

    members: Mapping[str, int]
    _: dataclasses.KW_ONLY
    followers: Mapping[str, int] = dataclasses.field(default_factory=dict)
    heads: int | None = None

    def __post_init__(self):
        for name in ("members", "followers"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise TypeError(f"{name} must map patterns to axes, got {value!r}.")
            for pattern, axis in value.items():
                _check_entry(name, pattern, axis)
        if not self.members:
            raise ValueError("members must hold at least one pattern.")
        if self.heads is not None:
            checks.positive_int(heads=self.heads)


def structural_prune(
    backbone: Any,
    importance: Any,
    groups: Sequence[PruneGroup],
    *,
    keep_fraction: float,
    stacked: Stacked | None = None,
) -> Any:
    r"""Cuts the least important channels out of a network (ladder side-tuning).

    The side network of a ladder starts well as a narrow copy of the backbone. A group
    names axes that count the same :math:`n` channels, as all axes that read or write
    the residual stream do. With importances :math:`I` of its members, channel
    :math:`j` has the score

    .. math::
        s_j = \sum_{\text{members}} \; \sum_{\text{other axes}} I_{\dots j \dots}

    and the :math:`\mathrm{round}(p n)` channels of highest score are kept
    (``keep_fraction`` :math:`p`; Python's ``round``, halves to even), in ascending
    order. With ``heads`` :math:`H` the best :math:`\mathrm{round}(p n / H)` are kept
    inside each of H blocks.

    All scores are those of the importance as given, before any cut, and one group
    for the residual stream leaves it consistent: channel j of the copy is the same
    channel of the backbone everywhere. The paper's code instead walks from input to
    output, scores each layer by what earlier cuts left of it, and lets each layer
    choose its own outputs. That walk is one call a group, in order, with the input
    axes of the next layer as followers; importance is pruned by itself, by the same
    rule::

        for group in walk:
            backbone, importance = [
                structural_prune(tree, importance, [group], keep_fraction=p)
                for tree in (backbone, importance)
            ]

    Layers in one leaf (``stacked``) decide as they would in a list. A group of stacks
    alone is a group for each layer, which keeps channels of its own. A group that has
    an unstacked leaf as well, as the residual stream has the embedding, is one
    decision for all: scores are summed over all members and all their layers.

    (There query, key and value share one decision by the *product* of their
    importances: put that product in the place of all three. The code rounds the
    number dropped, :math:`\mathrm{round}((1 - p) n)`, which differs for halves only.)

    Guarantees:
      - Equal scores: the lower index wins. ``keep_fraction=1`` changes no entry.
      - A stack is cut as the list of its layers would be.
      - A leaf in no group is returned as it is. A leaf may be in several groups, or
        in one group twice, by different axes.
      - Dtypes, containers and Flax Variables are kept; NumPy arrays stay in NumPy.
        Over Explicit mesh axes a leaf stays sharded along the axes that are not cut.
      - Scores are summed in float64, one leaf at a time, on the host. Importance
        must be concrete; the backbone may be traced, as in ``jax.eval_shape``.

    Args:
      backbone: the tree of parameters to cut.
      importance: a tree of non-negative numbers, a leaf of the same path and shape
        for each member; it may have holes elsewhere. :func:`fisher_information` gives
        one; the magnitudes of the parameters are another.
      groups: at least one :class:`PruneGroup`.
      keep_fraction: the fraction :math:`p` in ``(0, 1]``; 1/8 in the paper.
      stacked: which leaves of ``backbone`` are stacks of layers, as ``nn.scan`` makes
        them: a selector, for layers on axis 0, or pattern -> axis. An axis of a group
        then never is the layer axis. Without this every leaf is one tensor: nothing
        can tell its layer axis from others, and a group that names it drops layers.

    Returns:
      A tree laid out like ``backbone``, with shorter leaves.

    Raises:
      ValueError: ``keep_fraction`` is out of range or leaves no channel; a pattern
        matches no leaf; an axis is out of range or is named twice; axes of one group
        differ in size, or its stacks in their number of layers, with no unstacked
        leaf among them; ``heads`` does not divide the size; ``stacked`` matches no
        leaf, or one without that axis; importance is missing, of another shape,
        negative, NaN, or of a leaf that ``backbone`` has not.
      TypeError: ``groups`` is no sequence of groups, ``keep_fraction`` no number, or
        importance is traced or not of real numbers.

    Examples:
      Column scores 1, 5, 7 and 4 keep columns 1 and 2:

      >>> import numpy as np
      >>> import optaxtricks as ot
      >>> params = {"embed": np.array([[10, 11, 12, 13], [20, 21, 22, 23]])}
      >>> importance = {"embed": np.array([[1.0, 4, 2, 3], [0, 1, 5, 1]])}
      >>> groups = [ot.PruneGroup({"embed": 1})]
      >>> pruned = ot.structural_prune(params, importance, groups, keep_fraction=0.5)
      >>> pruned["embed"].tolist()
      [[11, 12], [21, 22]]

      Each of four layers keeps 3 of its 6 inputs:

      >>> backbone = {"layers": {"kernel": np.ones((4, 6, 10))}}
      >>> groups = [ot.PruneGroup({"^layers/kernel$": 0})]
      >>> pruned = ot.structural_prune(
      ...     backbone, backbone, groups, keep_fraction=0.5, stacked="^layers"
      ... )
      >>> pruned["layers"]["kernel"].shape
      (4, 3, 10)

    References:
      Sung et al., 2022, `LST: Ladder Side-Tuning for Parameter and Memory Efficient
      Transfer Learning <https://arxiv.org/abs/2206.06522>`_, section 3.3 (code:
      ylsung/Ladder-Side-Tuning, ``fisher-v2``).
    """
    checks.fixed_fraction(keep_fraction=keep_fraction)
    _check_groups(groups)
    named, axes = leaves_with_paths(backbone), layer_axes(backbone, stacked)
    leaves = [Tensors(*one, axis) for one, axis in zip(named, axes, strict=True)]
    scores = importance_of(importance, leaves)
    cuts: dict[Place, np.ndarray] = {}
    for number, group in enumerate(groups):
        where = f"groups[{number}]"
        members = places_of(group.members, leaves, f"{where} members")
        followers = places_of(group.followers, leaves, f"{where} followers")
        check_places([*members, *followers], leaves, cuts, where)
        apart = layers_apart([*members, *followers], leaves, where)
        total = 0.0
        for i, axis in members:
            sums = channel_sums(leaves[i], axis, scores)
            total = total + (sums if apart else sums.sum(axis=0, keepdims=True))
        kept = best_channels(
            np.asarray(total), float(keep_fraction), group.heads, where
        )
        cuts |= dict.fromkeys([*members, *followers], kept if apart else kept[0])
    pruned = [leaf for _, leaf in named]
    for (i, axis), kept in cuts.items():
        pruned[i] = _cut(pruned[i], kept, axis, axes[i])
    return jax.tree.unflatten(jax.tree.structure(backbone), pruned)


def _cut(leaf: Any, kept: np.ndarray, axis: int, layer: int | None) -> Any:
    """The leaf with these channels alone, or with a row of them for each layer."""
    if layer is None:
        return taken(leaf, kept, axis)
    if kept.ndim == 1:
        return taken(leaf, kept, axis + (axis >= layer))
    return taken_by_layer(leaf, kept, axis, layer)


def _check_entry(name: str, pattern: Any, axis: Any) -> None:
    if not isinstance(pattern, str):
        raise TypeError(f"{name} must map str to int, got the pattern {pattern!r}.")
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise TypeError(f"{name} must map {pattern!r} to an int axis, got {axis!r}.")
    compiled(pattern, name=name)


def _check_groups(groups: Any) -> None:
    known = lambda group: isinstance(group, PruneGroup)
    if not isinstance(groups, Sequence) or not all(map(known, groups)):
        raise TypeError(f"groups must be a sequence of PruneGroup, got {groups!r}.")
    if not groups:
        raise ValueError("groups must hold at least one PruneGroup.")
