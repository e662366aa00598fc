"""A Linen embedding, and a gradient of the rows that it looked up."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..._core import checks
from ..._core.paths import leaves_with_paths
from ..lookups import Tape, active, checked_ids, row_sparse, zero_shifts


class RowEmbed(nn.Embed):
    r"""A ``flax.linen.Embed`` whose gradient may be had as looked-up rows.

    It is ``linen.Embed`` in all respects, :math:`y = E_{\mathrm{ids}}`, with its dense
    gradient under ``jax.grad``. Under :func:`row_value_and_grad` its gradient is a
    :class:`RowSparse`, for :func:`lazy_rows`, and no array of the table's size is made.

    Ids in ``[-num_embeddings, 0)`` count from the end. Others out of range read NaN
    and have no gradient. So the id ``num_embeddings`` may be padding:
    ``jnp.where(ids[..., None] < num_embeddings, embed(ids), 0)`` makes its vector zero.

    ``attend(query)`` is ``query @ embedding.T``. It uses every row, so that the
    gradient of a tied table is dense by nature: :func:`row_value_and_grad` then raises
    an error, unless nothing differentiable depends on it. Use ``linen.Embed`` there.

    Attributes:
      num_embeddings: number of rows.
      features: entries of a row.
      dtype: of the result; by default that of the table.
      param_dtype: of the table.
      embedding_init: initializer of the table, the parameter ``embedding``.
      promote_dtype: how ``dtype`` is applied.

    Raises:
      ValueError: when called, ids that are no integers; see also
        :func:`row_value_and_grad`.
      TypeError: when called, ids that are no array.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> embed, ids = ot.nn.linen.RowEmbed(5, 3), jnp.array([[0, 1], [4, 4]])
      >>> embed.apply(embed.init(jax.random.key(0), ids), ids).shape
      (2, 2, 3)
    """

    def __call__(self, inputs: jax.Array) -> Any:
        """Rows at ``inputs``, integers of any shape, in a new last axis."""
        inputs = checked_ids(inputs)
        if (tape := active()) is None:
            return super().__call__(inputs)
        rows = tape.look_up(self.embedding, inputs)
        return self.promote_dtype(rows, dtype=self.dtype, inexact=False)[0]


def row_value_and_grad(
    model: nn.Module, loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""As ``jax.value_and_grad``, with row-sparse gradients of embedding tables.

    A look-up is :math:`y = E_{\mathrm{ids}} + s` with :math:`s = 0`, and what is
    computed is :math:`\partial L / \partial s`, of the shape of the rows. Time and
    memory grow with the rows that are looked up, not with the table. Several calls of
    a :class:`RowEmbed`, and of the model, add up.

    The loss calls the model through its first argument:
    ``apply(*inputs, variables={}, **options)`` is ``model.apply({"params": params,
    **variables}, *inputs, **options)``. Other collections come in by ``variables``,
    and go out, with ``mutable``, as from ``model.apply``; hand them on by ``has_aux``.

    For :func:`lazy_rows` a row that was looked up counts as touched, even if its
    gradient is zero, as behind a mask.

    Guarantees:
      - The dense form of the result is the gradient of ``jax.value_and_grad``.
      - No array of the table's size is made; under ``jit`` with donated buffers, an
        update by :func:`lazy_rows` writes the touched rows in place.
      - Never a wrong gradient: what cannot be had row by row is an error. That is a
        :class:`RowEmbed` called inside a transformation within the loss (``nn.remat``,
        ``nn.scan``, ``nn.vmap``, ``nn.jit``, ``nn.map_variables``, or JAX's); such
        transformations of other parts of the model are fine. And it is any
        differentiable use of the table but by a look-up: ``attend``.

    The loss is traced twice, as the number and shape of the look-ups is not known
    before, and so must not branch on numbers in Python. It is computed once. Outside
    of ``jit`` every call traces.

    Args:
      model: an unbound Linen module.
      loss_fn: ``loss_fn(apply, *args)``, a scalar; with ``has_aux``, a pair of it and
        anything else. It should look up the same number of rows whenever it is called.
      has_aux: whether ``loss_fn`` gives a pair.

    Returns:
      A function of ``(params, *args)``, which gives the value, or the pair ``(value,
      aux)``, and the gradient: a tree laid out like ``params`` with a
      :class:`RowSparse` at the table of every :class:`RowEmbed` that was called. Its
      rows have the table's dtype. A table that was not looked up is a parameter like
      any other, with a gradient of zeros.

    Raises:
      ValueError: from the function, a loss that calls no :class:`RowEmbed`, one called
        inside a transformation, or a table that is used in another way.
      TypeError: an argument of the wrong kind; from the function, a loss that gives no
        pair for ``has_aux``.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> model, ids = ot.nn.linen.RowEmbed(5, 1), jnp.array([3, 1, 3])
      >>> params = model.init(jax.random.key(0), ids)["params"]
      >>> loss_fn = lambda apply, ids: 2 * apply(ids).sum()
      >>> value, grads = ot.nn.linen.row_value_and_grad(model, loss_fn)(params, ids)
      >>> grads["embedding"].indices.tolist(), grads["embedding"].values.tolist()
      ([1, 3, 5], [[2.0], [4.0], [0.0]])
    """

    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a Linen module, got {model!r}.")
    checks.loss_function(loss_fn, has_aux=has_aux)

    def value_and_grad(params: Any, *args: Any, **kwargs: Any) -> Any:
        # Boxes, such as nn.Partitioned, come back with the gradient's layout.
        plain, layout = nn.meta.unbox(params), jax.tree.structure(params)
        leaves = dict(leaves_with_paths(plain))

        def run(dense: Any, tape: Tape) -> Any:
            whole = {**leaves, **dense, **tape.guarded}
            tree = jax.tree.unflatten(jax.tree.structure(plain), whole.values())
            return loss_fn(_applier(model, tree, tape), *args, **kwargs)

        def trace() -> Any:
            tape = Tape({path: x for path, x in leaves.items() if jnp.ndim(x) == 2})
            run({}, tape)
            return {path: rows for path, rows in tape.rows.items() if rows}

        def loss(dense: Any, shifts: Any, token: jax.Array) -> Any:
            tape = Tape({path: leaves[path] for path in shifts}, shifts, token)
            out = run(dense, tape)
            value, aux = checks.pair(out) if has_aux else (out, None)
            return value, (aux, tape.ids)

        shifts = zero_shifts(trace)
        if not shifts:
            raise ValueError("row_value_and_grad needs a loss that calls a RowEmbed.")
        dense = {path: x for path, x in leaves.items() if path not in shifts}
        differ = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (value, (aux, ids)), (grads, cotangents, _) = differ(
            dense, shifts, jnp.zeros(())
        )
        for path in shifts:
            grads[path] = row_sparse(leaves[path], ids[path], cotangents[path])
        tree = jax.tree.unflatten(layout, [grads[path] for path in leaves])
        return ((value, aux) if has_aux else value), tree

    return value_and_grad


def _applier(model: nn.Module, params: Any, tape: Tape) -> Callable[..., Any]:
    """`model.apply` for a loss."""

    def apply(
        *inputs: Any, variables: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        with tape.recording():
            return model.apply(
                {**(variables or {}), "params": params}, *inputs, **options
            )

    return apply
