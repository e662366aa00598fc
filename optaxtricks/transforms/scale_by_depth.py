"""Layer-wise decay of the rate: the further below the head, the slower."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.depths import Above, Layering, layers_above
from .._core.factor_notes import note
from .._core.factors import times
from .._core.layers import Stacked
from .._core.paths import flatten, leaves_with_paths
from .._core.selectors import Selector, compiled


def scale_by_depth(
    decay: float,
    *,
    layers: str | re.Pattern[str] = r"layers[_/](\d+)",
    stacked: Stacked | None = None,
    first: Selector | None = None,
    top: Selector | None = None,
    last: Selector | None = None,
    gap: float = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Multiplies updates by a power of ``decay`` that grows towards the input.

    With :math:`N` layers, numbered from 0 at the input, the factors are

    ==========================================  =========================
    leaf                                        factor
    ==========================================  =========================
    the head: ``last``, and what nothing finds  1
    ``top``                                     ``decay ** gap``
    layer :math:`i`                             ``decay ** (gap + N - 1 - i)``
    ``first``: what lies below the layers       ``decay ** (gap + N)``
    ==========================================  =========================

    Embeddings have to be named by ``first``: what nothing finds has the head's rate.
    The published conventions differ in the ends, here for :math:`N = 12`:

    - BEiT (its ViT): ``first="^(cls_token|mask_token|pos_embed|patch_embed)"``. The
      final norm, the pooling norm and the head have 1, the top layer ``decay``, the
      embeddings ``decay ** 13``.
    - timm (its ViT): also ``top="^norm"``, as the final norm goes with the top layer.
      The number of its groups follows from the parameters: of a model without a head
      the top layer has 1, which is ``gap=0``.
    - ELECTRA: ``gap=2``, ``first="embeddings"``. The task's own layers have 1, nothing
      has ``decay``, the top layer ``decay ** 2``, the embeddings ``decay ** 14``.
    - XLNet: ``gap=0`` and no ``first``. The top layer has 1, as all but the layers.

    :math:`N` is the highest number plus 1, or the length of the stacks. What stands
    before the match of ``layers`` in a path is a tower, as ``encoder/`` and
    ``decoder/``. Towers and stacks of one length count each on its own; where lengths
    differ, give each tower a transformation of its own, with ``layers`` that names it
    (``r"^encoder/layers/(\d+)"``). For a list of layers below a stack there is
    :func:`scale_by_path` with a vector.

    Put it behind what normalises gradients, as Adam does not see the scale of what
    comes in, and behind weight decay, to scale that too: then it is a rate for each
    layer. :func:`summary` shows the factors.

    Guarantees:
      - Updates keep structure, shapes and dtypes; the product is taken in float32 or
        wider. A :class:`RowSparse` has its values scaled.
      - A known ``decay`` is raised to a power in float64 and rounded once.
      - A stack gets, to the bit, what the list of its layers gets.
      - The head, and everything with ``decay=1``, passes bit for bit.
      - Layers that ``optax.masked`` or ``optax.partition`` takes out still count where
        their paths have numbers.
      - No state, and no communication on any sharding, that of the layer axis
        included.

    Args:
      decay: the ratio of rates of neighbouring layers, in ``(0, 1]``. It may be
        traced, as by ``optax.inject_hyperparams``, where ``layers`` and selectors that
        are predicates go to ``static_args``, and narrow parameters need
        ``hyperparam_dtype=jnp.float32``, or it may become 1.
      layers: a pattern searched in paths, whose group 1 is the number of the layer,
        from 0; it finds ``layers/3`` and ``layers_3`` unless told otherwise.
      stacked: the leaves that are stacks of layers: a selector (see :func:`select`),
        for layers on axis 0, or pattern -> layer axis. Layer :math:`i` is index
        :math:`i`.
      first: a selector of the leaves below the layers: embeddings.
      top: a selector of leaves that go with the topmost layer.
      last: a selector of the leaves above the layers. It is of use where ``layers``
        would find a number in a head's path, and says that the head must be there.
      gap: how many powers of ``decay`` lie between the head and the topmost layer, at
        least 0.

    Returns:
      A transformation whose state is an ``optax.EmptyState``.

    Raises:
      ValueError: ``decay`` or ``gap`` is out of range, ``layers`` is no pattern or has
        no group; from ``init``, no layer (the message lists the paths), a group 1 that
        is no whole number, towers of different length, a leaf in two of ``first``,
        ``top`` and ``last``, a stack with a number in its path, a selector that
        matches no leaf, and a place inside :func:`per_layer`.
      TypeError: an argument of the wrong kind; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> grads = {"emb": 1.0, "layers": [{"w": 1.0}, {"w": 1.0}], "head": 1.0}
      >>> tx = ot.scale_by_depth(0.5, first="^emb")
      >>> updates, _ = tx.update(grads, tx.init(grads))
      >>> {k: float(updates[k]) for k in ("emb", "head")}
      {'emb': 0.125, 'head': 1.0}
      >>> [float(layer["w"]) for layer in updates["layers"]]
      [0.25, 0.5]
      >>> grads = {"emb": 1.0, "layers": {"w": jnp.ones(2)}, "head": 1.0}
      >>> tx = ot.scale_by_depth(0.5, stacked="^layers/", first="^emb")
      >>> tx.update(grads, tx.init(grads))[0]["layers"]["w"].tolist()
      [0.25, 0.5]

    References:
      Howard and Ruder, 2018, `Universal Language Model Fine-tuning
      <https://arxiv.org/abs/1801.06146>`_: 1 / 2.6 a layer. Clark et al., 2020,
      `ELECTRA <https://arxiv.org/abs/2003.10555>`_ (code: google-research/electra,
      ``_get_layer_lrs``). Bao et al., 2022, `BEiT <https://arxiv.org/abs/2106.08254>`_
      (code: microsoft/unilm, ``get_num_layer_for_vit``). Wightman, timm,
      ``param_groups_layer_decay``. Yang et al., 2019, `XLNet
      <https://arxiv.org/abs/1906.08237>`_ (code: zihangdai/xlnet, ``get_train_op``,
      which scales what goes into Adam).
    """
    checks.fraction(decay=decay, schedule=False)
    checks.non_negative(gap=gap)
    how = Layering(_pattern(layers), stacked, first, top, last)

    def init(params: optax.Params) -> optax.EmptyState:
        checks.inexact_leaves(params, by="scale_by_depth")
        layers_above(params, how)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params, extra_args
        update_checks.state_of(optax.EmptyState, state, by="scale_by_depth")
        update_checks.inexact_updates(updates, by="scale_by_depth")
        named, layout = leaves_with_paths(updates), flatten(updates)[1]
        factors = [_power(decay, gap, above) for above in layers_above(updates, how)]
        axes = update_checks.stack_axes(updates, stacked)
        out = [
            note(times(leaf, factor, axis), path, factor)
            for (path, leaf), factor, axis in zip(named, factors, axes, strict=True)
        ]
        return jax.tree.unflatten(layout, out), state

    return transformation(init, update, one_leaf=True)


def _pattern(layers: Any) -> re.Pattern[str]:
    if not isinstance(layers, str | re.Pattern):
        raise TypeError(f"layers must be a pattern, got {layers!r}.")
    pattern = compiled(layers, name="layers")
    if not pattern.groups:
        raise ValueError(
            f"layers {pattern.pattern!r} must have a group, which finds the number of "
            "the layer."
        )
    return pattern


def _power(decay: Any, gap: Any, above: Above) -> Any:
    """The factor of a leaf with so many layers above it; 1 for the head."""
    if above is None:
        return 1
    if not any(isinstance(value, jax.core.Tracer) for value in (decay, gap)):
        # Number by number: NumPy raises many at once otherwise than one.
        power = lambda layers: float(decay) ** (float(gap) + layers)
        single = isinstance(above, int)
        return power(above) if single else np.asarray([power(n) for n in above])
    base, offset = (_wide(value) for value in (decay, gap))
    return jnp.power(base, offset + jnp.asarray(above, offset.dtype))


def _wide(value: Any) -> jax.Array:
    """A number in float32 or wider."""
    value = jnp.asarray(value)
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    dtype = value.dtype if floating else np.dtype(np.float32)
    return value.astype(np.promote_types(dtype, np.float32))
