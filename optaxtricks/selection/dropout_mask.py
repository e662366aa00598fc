"""Random entries: which of them are kept at a step, as a pure function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._core import checks
from .._core.counter_hash import (
    GRANULARITIES,
    AxisName,
    Granularity,
    axis_names,
    entry_words,
    last_kept_word,
    leaf_words,
    shard_words,
    step_words,
)
from .._core.layers import Layer, Stacked, layer_axes, one_layer_seen
from .._core.paths import leaves_with_paths, listing
from .._core.schedules import at_step
from .._core.shardings import typed_sharding


def dropout_mask(
    tree: Any,
    keep_rate: optax.ScalarOrSchedule,
    *,
    key: Any,
    step: Any,
    granularity: Granularity = "element",
    stacked: Stacked | None = None,
    axis_name: AxisName | None = None,
) -> Any:
    r"""The entries that :func:`gradient_dropout` and :func:`update_dropout` keep.

    .. math::
        M_i = [\, h(\mathrm{key}, \mathrm{step}, \mathrm{path}, i) < p \cdot 2^{32} \,]

    with :math:`h` an integer hash whose values are spread evenly over 32 bits, so
    each entry is kept with probability :math:`p`, read in float32. Of a rate below
    :math:`2^{-9}`, :math:`p \cdot 2^{32}` is rounded down to a whole number, but not
    below one.

    Guarantees:
      - A leaf's mask depends on the key, the step, the leaf's path and its shape
        alone: not on its dtype, its sharding, the device count or other leaves.
      - With ``stacked`` each layer has a mask of its own, a function of its number too
        (of :math:`h(\mathrm{key}, \mathrm{step}, \mathrm{path}, \mathrm{layer}, i)`):
        the one that dropout inside :func:`per_layer` takes.
      - Entries, rows, leaves, steps and keys are independent as far as statistical
        tests can tell; the hash is not fit for cryptography or privacy noise.

    Args:
      tree: a pytree whose leaves have shapes (arrays or ``jax.ShapeDtypeStruct``).
      keep_rate: probability :math:`p` in ``(0, 1]``, or a schedule read at ``step``.
      key: as :func:`gradient_dropout` takes it.
      step: int count of earlier updates in ``[0, 2**31)``; 0 is the first. It may be
        traced.
      granularity: ``"element"``; ``"row"``, one draw per index of axis 0 (a scalar
        is one row); or ``"leaf"``, one draw per leaf.
      stacked: the leaves whose layers are taken one by one, as :func:`per_layer`
        takes it: rows, and entries, are then counted within a layer.
      axis_name: as :func:`gradient_dropout` takes it.

    Returns:
      A tree of bool arrays shaped like the leaves of ``tree``.

    Raises:
      ValueError: ``keep_rate``, ``key``, ``step`` or ``granularity`` is out of range;
        two leaves of one path; a leaf of more than :math:`2^{32}` entries on one axis;
        ``stacked`` matches no leaf, or one without its layer axis; ``axis_name`` is not
        mapped over.
      TypeError: an argument of the wrong kind.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> grads = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
      >>> mask = ot.dropout_mask(grads, 0.5, key=0, step=0)
      >>> tx = ot.gradient_dropout(0.5, key=0)
      >>> kept, _ = tx.update(grads, tx.init(grads))
      >>> bool(((kept["w"] != 0) == mask["w"]).all())
      True
    """
    checks.fraction(keep_rate=keep_rate)
    checks.chosen(GRANULARITIES, granularity=granularity)
    checks.step_count(step=step)
    axes = axis_names(axis_name)
    rate = at_step(step, keep_rate=keep_rate)
    last = last_kept_word(rate)
    leaves = leaves_with_paths(tree)
    has_shape = lambda leaf: hasattr(leaf, "shape") or isinstance(leaf, int | float)
    if bare := [path for path, leaf in leaves if not has_shape(leaf)]:
        raise TypeError(f"tree has leaves without a shape: {listing(bare)}.")
    words = leaf_words(key, [path for path, _ in leaves])
    now = shard_words(step_words(step), axes)
    seed = lambda word: word ^ now

    def whole(leaf: Any, word: jax.Array) -> jax.Array:
        # An abstract leaf cannot pass through jit, which a typed sharding needs.
        rule = _kept if isinstance(leaf, jax.ShapeDtypeStruct) else _kept_jitted
        return rule(leaf, seed(word), last, granularity)

    def stack(path: str, leaf: Any, axis: int) -> jax.Array:
        shape = leaf.shape[:axis] + leaf.shape[axis + 1 :]

        def layer(number: jax.Array) -> jax.Array:
            with one_layer_seen({path: Layer(number, leaf.shape[axis])}):
                (word,) = leaf_words(key, [path])
            like = jax.ShapeDtypeStruct(shape, bool)
            return _kept(like, seed(word), last, granularity)

        rule = jax.vmap(layer, out_axes=axis, axis_size=leaf.shape[axis])
        return _beside(leaf, rule, jnp.arange(leaf.shape[axis], dtype=jnp.int32))

    masks = [
        whole(leaf, word) if axis is None else stack(path, leaf, axis)
        for (path, leaf), word, axis in zip(
            leaves, words, layer_axes(tree, stacked), strict=True
        )
    ]
    # No word is below a rate of 0, which only a schedule can give.
    masks = [mask & (jnp.asarray(rate) > 0) for mask in masks]
    return jax.tree.unflatten(jax.tree.structure(tree), masks)


def _beside(leaf: Any, rule: Callable[..., jax.Array], *arguments: Any) -> jax.Array:
    """What the rule gives, lying where the leaf does."""
    if isinstance(leaf, jax.core.Tracer):
        typed = typed_sharding(leaf)
        made = rule(*arguments)
        return made if typed is None else jax.sharding.reshard(made, typed)
    known = isinstance(leaf, jax.Array) and leaf.committed
    where = leaf.sharding if known else None
    return jax.jit(rule, out_shardings=where)(*arguments)


def _kept(
    like: Any, seed: jax.Array, last: jax.Array, granularity: Granularity
) -> jax.Array:
    kept = entry_words(like, seed, granularity) <= last
    return jnp.broadcast_to(kept, like.shape)


# The leaf's values are unused, but its devices are where the mask is made.
_kept_jitted = jax.jit(_kept, static_argnums=3, keep_unused=True)
