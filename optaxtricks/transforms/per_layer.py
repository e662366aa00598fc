"""One layer of a stack at a time, for transformations that act on whole tensors."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._core import checks
from .._core.alignment import params_like
from .._core.build import transformation
from .._core.layer_plan import LayerPlan
from .._core.layers import Stacked, layer_axes
from .._core.paths import flatten


def per_layer(
    inner: optax.GradientTransformation, stacked: Stacked
) -> optax.GradientTransformationExtraArgs:
    r"""Shows an optimizer the layers of a stack one at a time.

    Models that scan over their layers (Flax's ``nn.scan`` and ``nnx.scan``, MaxText,
    T5X, Levanter, big_vision) hold a parameter of all layers in one leaf. A rule that
    takes a leaf for one matrix then does another thing than in a list of layers: one
    root mean square, one norm, one draw for all of them. Inside ``per_layer``,

    .. math::
        \mathrm{update}(G)_{\ell} = \mathrm{inner.update}(G_{\ell}), \qquad
        \ell = 0, \dots, L - 1,

    for each index :math:`\ell` of the layer axis, whatever ``inner`` is: our
    transformations and Optax's, chains, partitions. Leaves that are no stacks pass
    through ``inner`` beside them, as they are.

    What works entry by entry (Adam, Lion, weight decay) needs none of this, and is not
    slower for it. What looks at several tensors together has to stay outside::

        tx = optax.chain(
            optax.clip_by_global_norm(1.0),
            ot.per_layer(ot.tiger(1e-3), {"^decoder/layers/": 1}),
        )

    Masks of :func:`keep_entries` and :func:`child_tuning_d` stay outside too, in the
    layout of the parameters; inside, a mask has the shape of one layer and counts for
    all. So does what counts layers itself: :func:`scale_by_depth`, and whatever takes
    ``stacked``.

    Random numbers of ours differ between layers: they are a function of the key, the
    step, the path, the layer's number and the position in the layer. Two stacks of one
    length differ by their paths, and a leaf that is no stack draws what no layer of any
    stack draws. :func:`dropout_mask` with ``stacked`` gives the masks. Noise of Optax's
    own has one key for all layers, and so goes outside.

    Guarantees:
      - Updates equal those of ``inner`` on the list of layers, on any layer axis, up to
        the rounding of sums over a tensor, which may be taken in another order: to the
        bit or 2 units in the last place for small tensors, to about 1e-6 of the largest
        update for large ones. (Products of matrices, as in ``optax.contrib.muon``,
        round otherwise where there are many.)
      - The state is that of ``inner`` on one layer, with layer axes added: a part of a
        parameter's shape has the parameter's shape, layer axis and sharding, and a step
        count is one number. Smaller parts, such as factored moments, have a layer axis
        more; other numbers that differ between layers have it in front.
      - In a compiled step nothing is taken apart or copied: layers stay on their axis,
        and program and compile time do not grow with their number.
      - No communication but that of ``inner``, where it sends a scalar a tensor one of
        :math:`L` numbers; on any sharding, also one that divides the layer axis.
      - For ``jax.ShapeDtypeStruct`` parameters ``init`` makes an abstract state, for a
        checkpoint to fill.

    Args:
      inner: any optimizer or transformation whose update of one tensor does not depend
        on another's. Extra arguments reach it whole, the same for all layers.
      stacked: the stacks: a selector (see :func:`select`) of leaves with layers on axis
        0, or a mapping from patterns to layer axes, such as ``{"^layers/": 1}``, the
        first pattern that is found in a path deciding. An axis counts from 0, or from
        -1 backwards.

    Returns:
      A transformation whose state is that of ``inner``.

    Raises:
      ValueError: from ``init``, ``stacked`` matches no leaf, or one without its layer
        axis; an ``inner`` that takes tensors together, one of them a stack, keeps one
        number over stacks of different lengths, or has one random key for all layers.
        From ``update``, the same where an extra argument leads to it; a state or
        updates of other shapes. What is not found out: keys that ``inner`` closes over,
        and two layers of one stack taken together where that is the only stack and
        ``inner`` chooses leaves by anchored paths.
      TypeError: an argument of the wrong kind; a stack's gradient is a
        :class:`RowSparse`.

    Examples:
      Steps relative to each layer's size, here 1 and 100:

      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> params = {"layers": jnp.stack([jnp.ones((2, 2)), jnp.full((2, 2), 100.0)])}
      >>> tx = ot.per_layer(ot.scale_by_param_rms(), stacked="layers")
      >>> ones = {"layers": jnp.ones((2, 2, 2))}
      >>> updates, _ = tx.update(ones, tx.init(params), params)
      >>> updates["layers"][:, 0, 0].tolist()
      [1.0, 100.0]

    References:
      ``jax.vmap``, of which this is a form that leaves axes where they are. Su, 2023,
      "Tiger: a tight-fisted optimizer", kexue.fm archive 9512, whose steps are relative
      to one layer's matrix.
    """
    checks.optimizer(inner=inner)
    inner = optax.with_extra_args_support(inner)
    plans: dict[Any, LayerPlan] = {}

    def plan(tree: Any) -> LayerPlan:
        leaves, layout = flatten(tree)
        known = layout, tuple(map(jax.typeof, leaves))
        if known not in plans:
            plans[known] = LayerPlan(inner, tree, layer_axes(tree, stacked))
        return plans[known]

    def init(params: optax.Params) -> optax.OptState:
        checks.array_leaves(params, by="per_layer")
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            return jax.eval_shape(init, params)
        params = jax.tree.map(jnp.asarray, params)
        return plan(params).init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is not None:
            params = params_like(params, updates, by="per_layer")
        updates, params = jax.tree.map(jnp.asarray, (updates, params))
        return plan(updates if params is None else params).update(
            updates, state, params, extra_args
        )

    return transformation(init, update, one_leaf=True)
