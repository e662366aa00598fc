"""An NNX embedding, and a gradient of the rows that it looked up."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from .._core import checks
from .lookups import Tape, active, checked_ids, row_sparse, zero_shifts


class RowEmbed(nnx.Embed):
    r"""An ``nnx.Embed`` whose gradient may be had as looked-up rows.

    It is ``nnx.Embed`` in all respects, :math:`y = E_{\mathrm{ids}}`, with its dense
    gradient under ``nnx.grad``. Under :func:`row_value_and_grad` its gradient is a
    :class:`RowSparse`, for :func:`lazy_rows`, and no array of the table's size is made.

    Ids in ``[-num_embeddings, 0)`` count from the end. Others out of range read NaN
    and have no gradient. So the id ``num_embeddings`` may be padding:
    ``jnp.where(ids[..., None] < num_embeddings, embed(ids), 0)`` makes its vector zero.

    ``attend(query)`` is ``query @ embedding.T``. It uses every row, so that the
    gradient of a tied table is dense by nature: :func:`row_value_and_grad` then raises
    an error, unless nothing differentiable depends on it. Use ``nnx.Embed`` there.

    Args:
      num_embeddings: number of rows.
      features: entries of a row.
      dtype: of the result; by default that of the table.
      param_dtype: of the table.
      embedding_init: initializer of the table.
      promote_dtype: how ``dtype`` is applied.
      rngs: an ``nnx.Rngs``.
      embedding_metadata: of the ``nnx.Param``.

    Raises:
      ValueError: when called, ids that are no integers; see also
        :func:`row_value_and_grad`.
      TypeError: when called, ids that are no array.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> from flax import nnx
      >>> embed = ot.nn.RowEmbed(5, 3, rngs=nnx.Rngs(0))
      >>> embed(jnp.array([[0, 1], [4, 4]])).shape
      (2, 2, 3)
    """

    def __call__(self, inputs: jax.Array, **options: Any) -> jax.Array:
        """Rows at ``inputs``, integers of any shape, in a new last axis.

        Of ``options``, ``nnx.Embed`` knows ``out_sharding``.
        """
        inputs = checked_ids(inputs)
        tape, table = active(), self.embedding.get_value()
        # A model that is not differentiated, such as a teacher, reads as usual.
        if tape is None or not tape.knows(table):
            return super().__call__(inputs, **options)
        rows = tape.look_up(table, inputs, **options)
        (rows,) = self.promote_dtype((rows,), dtype=self.dtype, inexact=False)
        return rows


def row_value_and_grad(
    loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
    r"""As ``nnx.value_and_grad``, with row-sparse gradients of embedding tables.

    A look-up is :math:`y = E_{\mathrm{ids}} + s` with :math:`s = 0`, and what is
    computed is :math:`\partial L / \partial s`, of the shape of the rows. Time and
    memory grow with the rows that are looked up, not with the table. Several calls of
    a :class:`RowEmbed`, and several that share a table, add up.

    For :func:`lazy_rows` a row that was looked up counts as touched, even if its
    gradient is zero, as behind a mask.

    Guarantees:
      - The dense form of the result is the gradient of ``nnx.value_and_grad``.
      - Batch statistics, counters of ``nnx.Rngs`` and other Variables of the model and
        of the arguments change as there, once.
      - No array of the table's size is made; under ``jit`` with donated buffers, an
        update by :func:`lazy_rows` writes the touched rows in place.
      - Never a wrong gradient: what cannot be had row by row is an error. That is a
        :class:`RowEmbed` called inside a transformation within the loss (``nnx.remat``,
        ``nnx.scan``, ``nnx.vmap``, ``nnx.jit``, or JAX's); such transformations of
        other parts of the model are fine. And it is any differentiable use of the
        table but by a look-up: ``attend``, or a penalty on the whole table.

    The loss is traced twice, as the number and shape of the look-ups is not known
    before, and so must not branch on numbers in Python. It is computed once. Outside
    of ``jit`` every call traces.

    Args:
      loss_fn: ``loss_fn(model, *args, **kwargs)``, a scalar; with ``has_aux``, a pair
        of it and anything else. It should look up the same number of rows whenever it
        is called.
      has_aux: whether ``loss_fn`` gives a pair.

    Returns:
      A function of ``(model, *args, **kwargs)``, with modules by position, which gives
      the value, or the pair ``(value, aux)``, and the gradient: an ``nnx.State`` over
      ``nnx.Param`` with a :class:`RowSparse` at the table of every :class:`RowEmbed`.
      Its rows have the table's dtype. A table that was not looked up gets one of no
      rows.

    Raises:
      ValueError: from the function, a model without a :class:`RowEmbed`, one called
        inside a transformation, or a table that is used in another way.
      TypeError: an argument of the wrong kind; from the function, a model that is no
        ``nnx.Module``, or a loss that gives no pair for ``has_aux``.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> from flax import nnx
      >>> model = ot.nn.RowEmbed(5, 1, rngs=nnx.Rngs(0))
      >>> loss_fn = lambda model, ids: 2 * model(ids).sum()
      >>> value, grads = ot.nn.row_value_and_grad(loss_fn)(model, jnp.array([3, 1, 3]))
      >>> rows = grads["embedding"].get_value()
      >>> rows.indices.tolist(), rows.values.tolist()
      ([1, 3, 5], [[2.0], [4.0], [0.0]])
    """

    checks.loss_function(loss_fn, has_aux=has_aux)

    def value_and_grad(model: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(model, nnx.Module):
            raise TypeError(f"model must be one nnx.Module, got {type(model)}.")
        call = functools.partial(loss_fn, **kwargs)
        tables = _tables(model)
        if not tables:
            raise ValueError("row_value_and_grad needs a model with a RowEmbed.")

        def trace() -> Any:
            # Copies, so that the model's counters and statistics stay.
            copied, *rest = nnx.clone((model, *args))
            return _taped(call, copied, rest, None, 0.0)[1].rows

        def loss(model: Any, extra: Any, *args: Any) -> Any:
            out, tape = _taped(call, model, args, *extra)
            value, aux = checks.pair(out) if has_aux else (out, None)
            return value, (aux, tape.ids)

        extra = zero_shifts(trace), jnp.zeros(())
        dense = nnx.All(nnx.Param, lambda path, _: path not in tables)
        differ = nnx.value_and_grad(
            loss, argnums=(nnx.DiffState(0, dense), 1), has_aux=True
        )
        (value, (aux, ids)), (grads, (cotangents, _)) = differ(model, extra, *args)
        leaves = dict(nnx.to_flat_state(grads))
        for path, variable in tables.items():
            name, table = _joined(path), variable.get_value()
            rows = row_sparse(table, ids[name], cotangents[name])
            leaves[path] = variable.replace(rows)
        return ((value, aux) if has_aux else value), nnx.from_flat_state(leaves)

    return value_and_grad


def _taped(
    loss_fn: Callable[..., Any], model: Any, args: Any, shifts: Any, token: Any
) -> tuple[Any, Tape]:
    """What the loss gives, and the tape of its look-ups."""
    variables = {_joined(path): v for path, v in _tables(model).items()}
    tables = {name: v.get_value() for name, v in variables.items()}
    tape = Tape(tables, shifts, token)
    for name, variable in variables.items():
        variable.set_value(tape.guarded[name])
    with tape.recording():
        out = loss_fn(model, *args)
    for name, variable in variables.items():
        # Unless the loss itself wrote a table.
        if tape.knows(variable.get_value()):
            variable.set_value(tables[name])
    return out, tape


def _tables(model: Any) -> dict[tuple[Any, ...], nnx.Param]:
    """The tables of all `RowEmbed`s by their paths; a shared one has one path."""
    nodes = list(nnx.iter_graph(model))
    known = {id(node.embedding) for _, node in nodes if isinstance(node, RowEmbed)}
    return {
        tuple(path): node
        for path, node in nodes
        if id(node) in known and isinstance(node, nnx.Param)
    }


def _joined(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
