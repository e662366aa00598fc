"""Ladder side-tuning: training the side network alone, and differentiating it alone."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from .._core import checks
from .._core.alignment import is_array, params_like
from .._core.build import transformation
from .._core.frozen_leaves import is_bitless, nothing_for
from .._core.paths import (
    OneLeaf,
    flatten,
    is_hole,
    is_node,
    leaves_with_paths,
    listing,
    nodes_with_paths,
)
from .._core.selectors import Selector, matches, proper_matches
from ..selection.selectors import merge, split


def ladder(
    inner: optax.GradientTransformation, *, side: Selector
) -> optax.GradientTransformationExtraArgs:
    """Trains the leaves of a side network; all others are frozen, at no cost.

    It shows ``inner`` the side leaves alone, with ``optax.MaskedNode`` in the places of
    all others, and gives these an update that changes no bit of them.

    What belongs inside ``inner`` is all that reads more than one leaf or keeps a state:
    clipping, accumulation, weight decay. Outside, ``optax.clip_by_global_norm`` counts
    the frozen gradients in its norm and makes the compiled step compute them, which is
    the backward pass of the backbone; ``optax.MultiSteps`` keeps an accumulator for
    each of them. So write

    - ``ladder(optax.chain(optax.clip_by_global_norm(1.0), adamw), side=...)``;
    - ``ladder(optax.MultiSteps(adamw, 4).gradient_transformation(), side=...)``.

    For Linen and plain trees, :func:`side_value_and_grad` gives gradients of the side
    leaves and ``None`` elsewhere:

    .. code-block:: python

        tx = ot.ladder(adamw, side=s)
        train = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
        loss, grads = ot.side_value_and_grad(loss_fn, side=s)(train.params, batch)
        train = train.apply_gradients(grads=grads)

    For NNX, a filter from ``nn.side_filter`` does it all, without this function, as
    ``nnx.Optimizer`` then sees no other leaf:

    .. code-block:: python

        only = ot.nn.side_filter(model, s)
        optimizer = nnx.Optimizer(model, adamw, wrt=only)
        loss, grads = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, only))(model)
        optimizer.update(model, grads)

    Guarantees:
      - The side leaves move as under ``inner`` alone.
      - A frozen leaf has no state and an update of exact zeros, -0.0 where floats, of
        its own layout and dtype, whatever its gradient, ``None`` and ``float0``
        included. It may be of any numbers.
      - A compiled step with donated buffers hands frozen parameters on as they are,
        without reading or copying them for the update.
      - If all of the gradient is given, but nothing outside reads it, the compiled step
        has no backward pass of the backbone.

    Args:
      inner: a complete optimizer, such as ``optax.adamw(1e-3)``.
      side: a selector (see :func:`select`) of the leaves to train.

    Returns:
      A transformation whose state is that of ``inner``. Its ``update`` needs
      ``params`` if gradients are ``None`` or ``float0`` where ``init`` saw a leaf.

    Raises:
      ValueError: from ``init``, ``side`` matches no leaf or every leaf; from
        ``update``, a leaf of ``side`` has no gradient, or no ``params`` where one is
        ``float0``.
      TypeError: ``inner`` is no transformation; from ``init``, an integer leaf in
        ``side``.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = {"backbone": jnp.ones(1000), "side": jnp.ones(2)}
      >>> decayed = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1, 0.9))
      >>> tx = ot.ladder(decayed, side="^side")
      >>> state = tx.init(params)
      >>> sum(leaf.size for leaf in jax.tree.leaves(state))  # the momentum
      2
      >>> grads = {"backbone": None, "side": jnp.ones(2)}
      >>> updates, state = tx.update(grads, state, params)
      >>> {name: bool(u.any()) for name, u in updates.items()}
      {'backbone': False, 'side': True}

    References:
      Sung et al., 2022, `LST: Ladder Side-Tuning for Parameter and Memory Efficient
      Transfer Learning <https://arxiv.org/abs/2206.06522>`_ (code:
      ylsung/Ladder-Side-Tuning, which trains every parameter named "side").
    """
    checks.optimizer(inner=inner)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        return inner.init(_side_alone(params, side))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        known = {} if params is None else _arrays(params, side)
        _check_complete(updates, known)
        alone = _side_alone(updates, side)
        if params is not None:
            params = params_like(params, alone, by="ladder")
        moved, state = inner.update(alone, state, params, **extra_args)
        return _with_frozen(moved, alone, updates, known), state

    return transformation(init, update, one_leaf=True)


def side_value_and_grad(
    loss_fn: Callable[..., Any], *, side: Selector, has_aux: bool = False
) -> Callable[..., Any]:
    """As ``jax.value_and_grad``, with respect to the leaves of a side network alone.

    It is ``jax.value_and_grad`` of the first part of :func:`split`. The other leaves
    are constants: their gradient is not computed, whoever would read it, and they may
    have any dtype, as those of a quantized backbone.

    Guarantees:
      - Values and gradients are those of ``jax.value_and_grad``.
      - The compiled step has no backward pass of the backbone, as far as the loss
        depends on side leaves by way of the side network only.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, a scalar; with ``has_aux``, a pair
        of it and anything else.
      side: a selector (see :func:`select`) of the leaves to differentiate.
      has_aux: whether ``loss_fn`` gives a pair.

    Returns:
      A function of ``(params, *args, **kwargs)``, which gives the value, or the pair
      ``(value, aux)``, and the gradient: a tree laid out like ``params`` with ``None``
      at the frozen leaves, as :func:`ladder` takes it.

    Raises:
      ValueError: from the function, ``side`` matches no leaf or every leaf.
      TypeError: ``loss_fn`` is no function, or ``has_aux`` no bool; from the function,
        an integer leaf in ``side``.

    Examples:
      >>> import optaxtricks as ot
      >>> loss_fn = lambda params, x: params["backbone"] * params["side"] * x
      >>> params = {"backbone": 5.0, "side": 2.0}
      >>> value, grads = ot.side_value_and_grad(loss_fn, side="side")(params, 3.0)
      >>> float(value), grads["backbone"], float(grads["side"])
      (30.0, None, 15.0)
    """
    checks.loss_function(loss_fn, has_aux=has_aux)

    def value_and_grad(params: Any, *args: Any, **kwargs: Any) -> Any:
        proper_matches(params, side, name="side")
        trained, rest = split(params, side)

        def loss(trained: Any) -> Any:
            return loss_fn(merge(trained, rest), *args, **kwargs)

        return jax.value_and_grad(loss, has_aux=has_aux)(trained)

    return value_and_grad


def _side_alone(tree: Any, side: Selector) -> Any:
    """The tree with `optax.MaskedNode` for frozen leaves, and for holes of any kind.

    So what had no frozen leaf at `init` may have it, or zeros for it, at `update`.
    """
    checks.array_leaves(tree, by="ladder")
    chosen = iter(proper_matches(tree, side, name="side"))
    nodes, layout = jax.tree.flatten(tree, is_leaf=is_node)
    shown = [
        node if not is_hole(node) and next(chosen) else optax.MaskedNode()
        for node in nodes
    ]
    alone = jax.tree.unflatten(layout, shown)
    checks.inexact_leaves(alone, by="ladder")
    return alone


def _arrays(params: optax.Params, side: Selector) -> dict[str, Any]:
    """The frozen arrays of the parameters by path; None in the place of side leaves."""
    arrays = jax.tree.map(lambda x: x if is_array(x) else None, params)
    chosen = matches(arrays, side, name="side")
    named = zip(leaves_with_paths(arrays), chosen, strict=True)
    return {path: None if c else leaf for (path, leaf), c in named}


def _check_complete(updates: optax.Updates, known: dict[str, Any]) -> None:
    """Rejects holes in the place of a side leaf."""
    missing = [
        path
        for path, x in nodes_with_paths(updates)
        if path in known and known[path] is None and (is_hole(x) or is_bitless(x))
    ]
    if missing:
        raise ValueError(f"leaves of side without a gradient: {listing(missing)}.")


def _with_frozen(moved: Any, alone: Any, updates: Any, known: dict[str, Any]) -> Any:
    """The side's updates in their places; elsewhere what changes no parameter."""
    left = iter(flatten(moved)[0])

    def fill(path: str, node: Any) -> Any:
        if path in known and not isinstance(node, OneLeaf):
            return nothing_for(known[path])
        if is_bitless(node):
            raise ValueError(
                f"ladder needs params in update: the gradient at {path!r} is float0, "
                "which does not say what can be added to the parameter."
            )
        return jax.tree.map(nothing_for, node)

    masked = jax.tree.leaves(alone, is_leaf=is_node)
    out = [
        fill(path, node) if is_hole(hidden) else next(left)
        for (path, node), hidden in zip(nodes_with_paths(updates), masked, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(updates, is_leaf=is_node), out)
