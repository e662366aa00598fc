"""A narrow copy of a network: its most important channels, cut out of every leaf."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.paths import leaves_with_paths, listing, table_of
from .._core.selectors import compiled
from .._core.shardings import taken

Named = list[tuple[str, Any]]
Place = tuple[int, int]
"""Leaf number and axis."""


@dataclasses.dataclass(frozen=True)
class PruneGroup:
    """Axes of leaves that are cut alike, for :func:`structural_prune`.

    A pattern is a regular expression searched in the leaf's path and may match
    several leaves. An axis counts from 0, or from -1 backwards.

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

    (There query, key and value share one decision by the *product* of their
    importances: put that product in the place of all three. The code rounds the
    number dropped, :math:`\mathrm{round}((1 - p) n)`, which differs for halves only.)

    Guarantees:
      - Equal scores: the lower index wins. ``keep_fraction=1`` changes no entry.
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

    Returns:
      A tree laid out like ``backbone``, with shorter leaves.

    Raises:
      ValueError: ``keep_fraction`` is out of range or leaves no channel; a pattern
        matches no leaf; an axis is out of range or is named twice; axes of one group
        differ in size; ``heads`` does not divide it; importance is missing, of
        another shape, negative, NaN, or of a leaf that ``backbone`` has not.
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

    References:
      Sung et al., 2022, `LST: Ladder Side-Tuning for Parameter and Memory Efficient
      Transfer Learning <https://arxiv.org/abs/2206.06522>`_, section 3.3 (code:
      ylsung/Ladder-Side-Tuning, ``fisher-v2``).
    """
    checks.fixed_fraction(keep_fraction=keep_fraction)
    _check_groups(groups)
    leaves = leaves_with_paths(backbone)
    scores = _importance_of(importance, leaves)
    cuts: dict[Place, np.ndarray] = {}
    for number, group in enumerate(groups):
        where = f"groups[{number}]"
        members = _places(group.members, leaves, f"{where} members")
        followers = _places(group.followers, leaves, f"{where} followers")
        _check_places([*members, *followers], leaves, cuts, where)
        total = sum(_channel_sums(leaves[i][0], axis, scores) for i, axis in members)
        kept = _best(np.asarray(total), float(keep_fraction), group.heads, where)
        cuts |= dict.fromkeys([*members, *followers], kept)
    pruned = [leaf for _, leaf in leaves]
    for (i, axis), kept in cuts.items():
        pruned[i] = taken(pruned[i], kept, axis)
    return jax.tree.unflatten(jax.tree.structure(backbone), pruned)


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


def _importance_of(importance: Any, leaves: Named) -> dict[str, Any]:
    """Importance by path, laid out as the backbone wherever it has a leaf."""
    found = leaves_with_paths(importance)
    shapes = {path: np.shape(leaf) for path, leaf in leaves}
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


def _places(patterns: Mapping[str, int], leaves: Named, what: str) -> list[Place]:
    """Leaf number and axis of all that the patterns match."""
    places = []
    for pattern, axis in patterns.items():
        search = compiled(pattern, name=what).search
        hits = [i for i, (path, _) in enumerate(leaves) if search(path)]
        if not hits:
            paths = listing([path for path, _ in leaves])
            raise ValueError(f"{what}: {pattern!r} matches no leaf. Paths: {paths}.")
        for i in hits:
            path, leaf = leaves[i]
            ndim = np.ndim(leaf)
            if not -ndim <= axis < ndim:
                raise ValueError(
                    f"{what}: axis {axis} is out of range for the leaf at {path!r} of "
                    f"shape {np.shape(leaf)}."
                )
            places.append((i, int(axis) % ndim))
    return places


def _check_places(
    places: list[Place], leaves: Named, earlier: Mapping[Place, Any], where: str
) -> None:
    """Rejects an axis that is named twice, and axes of different sizes."""
    seen = set(earlier)
    for i, axis in places:
        if (i, axis) in seen:
            raise ValueError(
                f"{where}: axis {axis} of the leaf at {leaves[i][0]!r} is named twice, "
                "here or in an earlier group; one decision can cut it."
            )
        seen.add((i, axis))
    sizes = {(leaves[i][0], axis): np.shape(leaves[i][1])[axis] for i, axis in places}
    if len(set(sizes.values())) > 1:
        shown = "; ".join(
            f"{path!r} axis {axis}: {size}" for (path, axis), size in sizes.items()
        )
        raise ValueError(f"{where} has axes of different sizes: {shown}.")


def _channel_sums(path: str, axis: int, scores: Mapping[str, Any]) -> np.ndarray:
    """Importance of one member summed over all axes but `axis`."""
    if path not in scores:
        raise ValueError(f"importance has no leaf at {path!r}, which is a member.")
    if isinstance(scores[path], jax.core.Tracer):
        raise TypeError(
            f"importance must be concrete, but the leaf at {path!r} is traced: prune "
            "outside of jit."
        )
    array = np.asarray(scores[path])
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
    others = tuple(i for i in range(array.ndim) if i != axis)
    return array.sum(axis=others, dtype=np.float64)


def _best(
    scores: np.ndarray, fraction: float, heads: int | None, where: str
) -> np.ndarray:
    """Ascending indices of the channels to keep."""
    blocks = heads or 1
    if scores.size % blocks:
        raise ValueError(
            f"{where}: heads={heads} does not divide its {scores.size} channels."
        )
    width = scores.size // blocks
    count = round(fraction * width)
    if count == 0:
        inside = f" in each of {heads} heads" if heads else ""
        raise ValueError(
            f"{where}: keep_fraction={fraction} of {width} channels{inside} leaves "
            "none."
        )
    table = scores.reshape(blocks, width)
    order = np.argsort(-table, axis=1, kind="stable")[:, :count]
    return (np.sort(order, axis=1) + width * np.arange(blocks)[:, None]).ravel()
