"""The entries with the highest scores, as masks: one global ranking or one a leaf."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks
from .._core.layers import Stacked, layer_axes
from .._core.paths import nodes_with_paths
from .._core.selectors import Selector, matches
from .._core.tiles import TILE, has_tiles, spread_over_tiles, tile_sums
from .._core.top_entries import invalid, largest

Scope = Literal["global", "leaf"]
Rule = Literal["exact", "percentile"]
Granularity = Literal["element", "tile"]


def top_fraction_mask(
    scores: Any,
    keep_fraction: float,
    *,
    where: Selector | None = None,
    scope: Scope = "global",
    rule: Rule = "exact",
    granularity: Granularity = "element",
    stacked: Stacked | None = None,
) -> Any:
    r"""Masks of the entries with the highest scores (Child-Tuning-D, FISH mask).

    Of the :math:`n` eligible entries the best fraction :math:`p` (``keep_fraction``)
    is kept. With ``rule="exact"`` these are the first

    .. math::
        k = \max(1, \lfloor p n + 10^{-6} \rfloor)

    entries by falling score, equal scores in order of position: leaf order, then
    row-major. With ``rule="percentile"`` they are all entries with

    .. math::
        s_i \ge \mathrm{percentile}_{100 (1 - p)}(s),

    linearly interpolated, as in the Child-Tuning code: :math:`\lfloor p (n - 1)
    \rfloor + 1` of distinct scores (a product within :math:`10^{-6}` below an integer
    counts as that integer), and more where scores tie. If more than a fraction
    :math:`1 - p` of the scores are zero (unused heads, rows that only padding would
    touch), the percentile is zero and *everything* is kept; the exact rule then fills
    up with zero scores by position.

    With ``granularity="tile"`` whole tiles of 8 rows and 128 columns are ranked, by the
    sums of their scores, at least in float32, and :math:`n` and :math:`k` count tiles.
    A TPU holds matrices in such tiles: :func:`compact_entries` moves them whole, but
    single entries one by one. For whole rows give sums of rows, of shape ``(n, 1)``, as
    scores, with ``granularity="element"``: their mask broadcasts.

    Nothing is sorted, concatenated or gathered. The threshold is found by bisection
    on the bits of the scores, and ties are cut by bisection on position; both count
    in integers, exact for any size. The search runs on the host, so call this outside
    of ``jit``; what it compiles serves all leaves of a shape.

    Guarantees:
      - ``rule="exact"`` keeps exactly :math:`k` entries or tiles, ties or not.
      - The layers of a ``stacked`` leaf get the masks that they would get as leaves.
      - The mask is the same on any sharding; over several devices only counts travel,
        and scores of tiles that are cut. Masks are sharded like their scores.
      - float16, bfloat16, float32 and float64 are ranked without rounding, sums of
        tiles aside; infinity ranks first, and -0.0 as 0.0.

    Args:
      scores: a tree of non-negative scores, as :func:`fisher_information` gives it.
        ``None`` stands for a leaf without scores, which is not eligible.
      keep_fraction: the fraction :math:`p` in ``(0, 1]``.
      where: which leaves are eligible, a selector as in :func:`select`; all by
        default. Leaves that are not come back as ``True``: trained densely.
      scope: ``"global"`` ranks all eligible entries together, ``"leaf"`` each tensor
        by itself: a leaf, or a layer of a stack.
      rule: ``"exact"`` or ``"percentile"``.
      granularity: ``"element"``, or ``"tile"`` to keep all of a tile or nothing; then
        the last two axes of eligible leaves must be multiples of 8 and 128.
      stacked: for ``scope="leaf"``, which eligible leaves are stacks of layers, as
        ``nn.scan`` makes them: a selector, for layers on axis 0, or pattern -> axis.
        All layers are searched at once, in programs of one size.

    Returns:
      A tree laid out like ``scores``: bool arrays for eligible leaves, the Python
      bool ``True`` for the others and for ``None``. :func:`keep_entries` and
      :func:`compact_entries` take it.

    Raises:
      ValueError: an argument out of range, ``where`` or ``stacked`` matches no leaf,
        a stack without the axis named, ``stacked`` without ``scope="leaf"``, an
        eligible leaf that is not made of tiles or whose tiles cut layers, no eligible
        entry, a float64 NumPy array while JAX's x64 mode is off, or a score
        that is negative or NaN.
      TypeError: ``keep_fraction`` is not a number, or scores are traced or not real
        floats.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> scores = {"body": jnp.array([4.0, 0.5, 3.0, 0.5]), "head": jnp.ones(2)}
      >>> mask = ot.top_fraction_mask(scores, 0.75, where="body")
      >>> mask["body"].tolist(), mask["head"]
      ([True, True, True, False], True)

      Two layers in one leaf, each with a share of its own:

      >>> layers = {"kernel": jnp.array([[1.0, 2.0], [4.0, 3.0]])}
      >>> mask = ot.top_fraction_mask(layers, 0.5, scope="leaf", stacked="kernel")
      >>> mask["kernel"].tolist()
      [[False, True], [True, False]]

      The better half of two tiles, though the other has the highest score:

      >>> kernel = jnp.ones((8, 256)).at[0, 0].set(9.0).at[:, 128:].set(2.0)
      >>> mask = ot.top_fraction_mask({"w": kernel}, 0.5, granularity="tile")
      >>> mask["w"].sum(axis=0)[jnp.array([0, 127, 128, 255])].tolist()
      [0, 0, 8, 8]

    References:
      Xu et al., 2021, `Raise a Child in Large Language Model
      <https://arxiv.org/abs/2109.05687>`_, the task-driven variant (code:
      alibaba/AliceMind, one percentile over the leaves whose name has ``layer``).
      Sung et al., 2021, `Training Neural Networks with Fixed Sparse Masks
      <https://arxiv.org/abs/2111.09839>`_ (code: varunnair18/FISH, an exact global
      top-k that charges the always trained head to the budget).
    """
    checks.fixed_fraction(keep_fraction=keep_fraction)
    checks.chosen(_SCOPES, scope=scope)
    checks.chosen(_RULES, rule=rule)
    checks.chosen(_GRANULARITIES, granularity=granularity)
    if stacked is not None and scope != "leaf":
        raise ValueError(f"stacked needs scope='leaf', got scope={scope!r}.")
    eligible = iter(_eligible(scores, where))
    nodes = [(p, x) for p, x in nodes_with_paths(scores) if not _is_masked(x)]
    chosen = [node is not None and next(eligible) for _, node in nodes]
    named = [entry for entry, c in zip(nodes, chosen, strict=True) if c]
    layout = jax.tree.structure(scores, is_leaf=lambda node: node is None)
    held = [x if c else None for (_, x), c in zip(nodes, chosen, strict=True)]
    axes = layer_axes(jax.tree.unflatten(layout, held), stacked)
    alone = axes if scope == "leaf" else None
    leaves, ranking = _checked(named), (alone, float(keep_fraction), rule)
    if granularity == "element":
        masks = iter(_masks(leaves, *ranking))
    else:
        _check_tiles([path for path, _ in named], leaves, axes)
        tiles = _masks([tile_sums(leaf) for leaf in leaves], *ranking)
        masks = map(spread_over_tiles, tiles, leaves)
    return jax.tree.unflatten(layout, [next(masks) if c else True for c in chosen])


def _eligible(scores: Any, where: Selector | None) -> list[bool]:
    if where is None:
        return [True] * len(jax.tree.leaves(scores))
    return matches(scores, where, name="where")


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _checked(named: Sequence[tuple[str, Any]]) -> list[jax.Array]:
    """The scores as arrays that can be ranked."""
    leaves = [_as_floats(path, leaf) for path, leaf in named]
    if not any(leaf.size for leaf in leaves):
        raise ValueError(
            f"scores have no eligible entry: {len(leaves)} leaves are eligible, and "
            "all of them are empty."
        )
    _check_scores([path for path, _ in named], leaves)
    return leaves


def _check_tiles(
    paths: Sequence[str], leaves: Sequence[jax.Array], axes: Sequence[int | None]
) -> None:
    for path, leaf, axis in zip(paths, leaves, axes, strict=True):
        if not has_tiles(leaf.shape):
            raise ValueError(
                "granularity='tile' needs leaves whose last two axes are multiples of "
                f"{TILE}, but the leaf at {path!r} has shape {leaf.shape}: leave it "
                "out with where."
            )
        if axis is not None and axis >= leaf.ndim - len(TILE):
            raise ValueError(
                f"granularity='tile' needs layers on an axis before the last two, but "
                f"of the leaf at {path!r}, of shape {leaf.shape}, they lie on axis "
                f"{axis}: leave it out with where."
            )


def _masks(
    leaves: list[jax.Array],
    axes: Sequence[int | None] | None,
    fraction: float,
    rule: Rule,
) -> list[jax.Array]:
    """Masks of leaves that are ranked together or, given their layer axes, alone."""
    groups = [(leaves, None)]
    if axes is not None:
        groups = [([leaf], axis) for leaf, axis in zip(leaves, axes, strict=True)]
    masks = []
    for group, axis in groups:
        size = sum(leaf.size for leaf in group)
        axis = axis if size else None
        layers = 1 if axis is None else group[0].shape[axis]
        rank = _RULES[rule](size // layers, fraction)
        masks += largest(group, rank, exact=rule == "exact", axis=axis)
    return masks


def _as_floats(path: str, leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"scores must be concrete, but the leaf at {path!r} is traced: make the "
            "mask outside of jit."
        )
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float):
        raise TypeError(
            f"scores must be arrays, but the leaf at {path!r} is a "
            f"{type(leaf).__name__}."
        )
    dtype = jnp.result_type(leaf) if isinstance(leaf, float) else leaf.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"scores must be real floating-point arrays, but the leaf at {path!r} has "
            f"dtype {dtype}."
        )
    array = jnp.asarray(leaf)
    if isinstance(leaf, np.ndarray) and array.dtype != leaf.dtype:
        raise ValueError(
            f"scores at {path!r} have dtype {leaf.dtype}, which JAX would round to "
            f"{array.dtype} and so make ties: cast them yourself or enable x64."
        )
    return array


def _check_scores(paths: Sequence[str], leaves: Sequence[jax.Array]) -> None:
    for path, (nans, negative) in zip(paths, invalid(leaves), strict=True):
        if nans or negative:
            raise ValueError(
                f"scores must be non-negative, but the leaf at {path!r} has {nans} "
                f"NaN and {negative} negative entries."
            )


def _exact_count(size: int, fraction: float) -> int:
    return min(size, max(1, math.floor(fraction * size + 1e-6)))


def _percentile_count(size: int, fraction: float) -> int:
    """The rank of the smallest score that is not below the percentile.

    The percentile lies between two neighbouring scores, or on one of them, so it
    keeps what the upper one keeps, and no interpolation is needed.
    """
    return min(size, math.floor(fraction * (size - 1) + 1e-6) + 1)


_SCOPES = ("global", "leaf")
_GRANULARITIES = ("element", "tile")
_RULES = {"exact": _exact_count, "percentile": _percentile_count}
