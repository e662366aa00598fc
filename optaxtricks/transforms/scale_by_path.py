"""A factor for every leaf, by its path: layer-wise rates, a faster predictor."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.factor_notes import note
from .._core.factors import check_length, factor, factor_at, times
from .._core.layers import Stacked
from .._core.paths import flatten, leaves_with_paths
from .._core.serialized import serialized_state
from ..selection.labels import PathLabels, label_by_path


@serialized_state
class ScaleByPathState(NamedTuple):
    """State of :func:`scale_by_path`.

    Attributes:
      step: int32 scalar, the number of earlier updates; ``None`` unless some factor
        is a schedule.
    """

    step: jax.Array | None


def scale_by_path(
    factors: Mapping[str, Any], *, stacked: Stacked | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies updates by factors chosen by regular expressions on their paths.

    .. math::
        u_\ell \leftarrow \kappa_{j(\ell)}\, u_\ell, \qquad
        j(\ell) = \text{the first pattern found in the path of leaf } \ell,

    and :math:`u_\ell` as it is where no pattern is found. A number at the end of a
    pattern is a whole one (see :func:`select`). Some uses: half a rate for biases,
    ``{"bias$": 0.5}``; the predictor of SimSiam or BYOL on a faster time scale than its
    encoder, ``{"^predictor/": 10.0}``. For rates that fall from layer to layer there is
    :func:`scale_by_depth`.

    Where layers lie stacked in one leaf, a factor may be a vector of one number a
    layer: ``{"^layers/": 0.8 ** np.arange(11, -1, -1)}`` with ``stacked="^layers/"``
    does what ``{f"^layers/{i}/": 0.8 ** (11 - i) for i in range(12)}`` does to a list
    of layers.

    Put it behind what normalises gradients: Adam and sign methods do not see the scale
    of what comes in. Behind weight decay it scales that too, as a rate of the leaf's
    own would. For a rate that is not a multiple of the others', see
    :func:`two_timescale`.

    Guarantees:
      - Updates keep structure, shapes and dtypes; the product is taken in float32 or
        wider. A :class:`RowSparse` has its values scaled.
      - A stack gets, to the bit, what the list of its layers gets.
      - A factor of exactly 1, one vector of ones, and no factor, pass the update bit
        for bit. A single 1 in a vector passes all numbers but subnormal ones, which a
        device may take for 0.
      - Without a schedule the state holds nothing.
      - No communication on any sharding, that of the layer axis included.

    Args:
      factors: pattern -> a number :math:`\kappa \ge 0`, for a stack also a vector of
        such numbers, or a schedule of the step that gives one of these; in order of
        precedence. A factor may be traced, as by ``vmap`` over factors.
      stacked: the leaves that are stacks of layers: a selector (see :func:`select`),
        for layers on axis 0, or pattern -> layer axis.

    Returns:
      A transformation whose state is a :class:`ScaleByPathState`.

    Raises:
      ValueError: ``factors`` is empty, a pattern is invalid or a factor is negative or
        not finite; from ``init``, a pattern that matches no leaf (the message lists
        the paths; a pattern shadowed by earlier ones is no error), a vector for a leaf
        that is no stack or has another number of layers, ``stacked`` inside
        :func:`per_layer`, and as ``stacked``. What a schedule gives is seen by
        ``update`` alone.
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> grads = {"encoder": {"w": jnp.ones(2), "b": jnp.ones(1)}, "predictor": 1.0}
      >>> tx = ot.scale_by_path({"^predictor": 10.0, "/b$": 0.5})
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> {k: v.tolist() for k, v in updates["encoder"].items()}
      {'b': [0.5], 'w': [1.0, 1.0]}
      >>> float(updates["predictor"])
      10.0
      >>> grads = {"layers": jnp.ones((3, 2)), "head": jnp.ones(2)}
      >>> tx = ot.scale_by_path({"layers": [0.25, 0.5, 1.0]}, stacked="layers")
      >>> tx.update(grads, tx.init(grads))[0]["layers"].tolist()
      [[0.25, 0.25], [0.5, 0.5], [1.0, 1.0]]

    References:
      Su, 2020, "A qualitative analysis of BYOL and SimSiam by fast and slow dynamics",
      kexue.fm archive 7980, for the predictor. Grill et al., 2020, `Bootstrap Your Own
      Latent <https://arxiv.org/abs/2006.07733>`_, whose appendix raises its rate.
    """
    known = _checked(factors)
    # Each leaf's pattern; the default is no pattern, as "" would match every leaf.
    patterns = label_by_path({pattern: pattern for pattern in known}, default="")
    scheduled = any(callable(value) for value in known.values())

    def init(params: optax.Params) -> ScaleByPathState:
        checks.inexact_leaves(params, by="scale_by_path")
        _of_leaves(params, patterns, known, update_checks.stack_axes(params, stacked))
        return ScaleByPathState(step=jnp.zeros((), jnp.int32) if scheduled else None)

    def update(
        updates: optax.Updates,
        state: ScaleByPathState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByPathState]:
        del params, extra_args
        update_checks.state_of(ScaleByPathState, state, by="scale_by_path")
        update_checks.inexact_updates(updates, by="scale_by_path")
        step = state.step
        now = {s: factor_at(step, **{_name(s): f}) for s, f in known.items()}
        axes = update_checks.stack_axes(updates, stacked)
        out = [
            note(times(leaf, value, axis), path, value)
            for path, leaf, value, axis in _of_leaves(updates, patterns, now, axes)
        ]
        if step is not None:
            step = jnp.asarray(optax.safe_increment(step))
        layout = flatten(updates)[1]
        return jax.tree.unflatten(layout, out), ScaleByPathState(step=step)

    return transformation(init, update, one_leaf=True)


def _of_leaves(
    tree: Any, patterns: PathLabels, factors: Mapping[str, Any], axes: list[int | None]
) -> list[tuple[str, Any, Any, int | None]]:
    """Path, leaf, factor and layer axis of each leaf; vectors have its length."""
    found = jax.tree.leaves(patterns(tree))
    quads = []
    for (path, leaf), s, axis in zip(leaves_with_paths(tree), found, axes, strict=True):
        if s in factors:
            check_length(factors[s], path, leaf, axis, _name(s))
        quads.append((path, leaf, factors.get(s, 1), axis))
    return quads


def _checked(factors: Any) -> dict[str, Any]:
    if not isinstance(factors, Mapping):
        raise TypeError(f"factors must map patterns to factors, got {factors!r}.")
    if not factors:
        raise ValueError("factors must hold at least one pattern.")
    for pattern in factors:
        if not isinstance(pattern, str):
            raise TypeError(f"factors must have str keys, got {pattern!r}.")
    return {s: factor(**{_name(s): value}) for s, value in factors.items()}


def _name(pattern: str) -> str:
    return f"factors[{pattern!r}]"
