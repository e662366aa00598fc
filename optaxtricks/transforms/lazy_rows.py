"""Rows of embedding tables that were not looked up stay where they are."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from .._core import checks, update_checks
from .._core.alignment import params_like
from .._core.build import transformation
from .._core.paths import flatten, holes, leaves_with_paths
from .._core.row_ids import by_path, touched
from .._core.selectors import Selector, row_matches
from .._core.shardings import typed_sharding, whole_rows
from .._core.state_parts import beside_params
from ..selection.row_sparse import RowSparse

Moments = Literal["decay", "freeze"]


def lazy_rows(
    inner: optax.GradientTransformation,
    *,
    tables: Selector,
    moments: Moments = "decay",
) -> optax.GradientTransformationExtraArgs:
    r"""Moves only those rows of embedding tables that were looked up.

    A row (an index of axis 0; of a vector, an entry) of a table is *touched* if its
    gradient is not all zero, or, for a table named in ``active_rows``, if it is
    listed there. ``inner`` runs on everything; an untouched row then gets an update
    of exactly zero, weight decay included:

    .. math::
        u_r \leftarrow [\, r \text{ touched} \,] \; \mathrm{inner}(g, \theta)_r.

    Its moments

    - with ``moments="decay"`` go on as ``inner`` has them, so that they fade while
      the row rests (LazyOptimizer);
    - with ``moments="freeze"`` stay as they are until the row is touched again
      (LazyAdam, SparseAdam). Step counts go on. With a sign method a frozen moment
      outvotes a new gradient unless that is larger: prefer ``"decay"`` there.

    This is the cure for rare rows that a sign method drives to one over the weight
    decay. On dense gradients it saves no time: moments are read and written all the
    same. It does where the gradient of a table is a :class:`RowSparse`: then, with
    ``moments="freeze"``, its rows of parameter and state are gathered, ``inner`` runs
    on the ``(k, d)`` block, and the rows go back in place. The cost grows with the
    rows, not with the table.

    It has no effect where every row has a gradient: on an embedding tied to the output
    layer, or behind noise or weight decay added to the gradient (put these inside).

    Guarantees:
      - Touched rows, and all leaves that are no tables, move as under ``inner``; with
        every row touched, updates and state are ``inner``'s.
      - Untouched rows get an update of exactly zero.
      - A :class:`RowSparse` gives what its dense form gives with its indices as
        ``active_rows``, if ``inner`` works row by row (see ``inner``). Compiled with
        donated buffers it copies no table; but XLA's CPU backend widens a bfloat16
        table to scatter into it, which takes time and memory of the table's size.
      - Inside ``optax.MultiSteps`` a row counts as touched if any gradient of the
        window touched it. (``active_rows`` must then name the rows of the whole
        window, and a :class:`RowSparse` cannot be accumulated.)
      - No communication but ids and touched rows, and a bit a row where rows are
        sharded by columns.

    Args:
      inner: any optimizer whose arithmetic on a row looks at that row alone, such
        as Adam, Lion, or Tiger with the tables as its ``embeddings``. Not LAMB, Muon,
        or Tiger without ``embeddings``, which measure a whole leaf: of a
        :class:`RowSparse` they would measure the block. It must not accumulate steps
        by itself.
      tables: a selector (see :func:`select`) of the embedding tables.
      moments: ``"decay"`` or ``"freeze"``.

    Returns:
      A transformation whose state is that of ``inner``. Its ``update`` takes the
      extra argument ``active_rows``: a dict, from a table's path or nested like the
      parameters, to integer ids of any shape (the number of rows is padding; under
      ``jit`` ids out of range are dropped) or a bool for each row. (Linen's
      ``TrainState.apply_gradients`` hands on no extra arguments: call ``tx.update``.)

    Raises:
      ValueError: ``moments`` is neither; ``tables`` matches no leaf, or a scalar; from
        ``update``, wrong paths or ids in ``active_rows``, a :class:`RowSparse` that is
        no table's or comes with ``"decay"``, or a state of ``inner`` without rows.
      TypeError: an argument of the wrong kind, such as float ids.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> tx = ot.lazy_rows(ot.lion(0.5, weight_decay=0.25), tables="emb")
      >>> params = {"emb": jnp.ones((2, 1))}
      >>> grads = {"emb": jnp.array([[3.0], [0.0]])}
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> updates["emb"].tolist()
      [[-0.625], [0.0]]
      >>> updates, _ = tx.update(grads, state, params, active_rows={"emb": [1]})
      >>> updates["emb"].tolist()
      [[0.0], [-0.125]]

    References:
      Su, 2019, "LazyOptimizer", kexue.fm archive 6869 (code:
      bojone/keras_lazyoptimizer), and 2023, archive 9736, for sign methods.
      ``tensorflow_addons.optimizers.LazyAdam`` and ``torch.optim.SparseAdam`` freeze.
    """
    checks.optimizer(inner=inner)
    checks.chosen(("decay", "freeze"), moments=moments)
    inner = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        checks.inexact_leaves(params, by="lazy_rows")
        row_matches(params, tables, name="tables")
        return inner.init(params)

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        active_rows: Mapping[str, Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is not None:
            params = params_like(params, updates, by="lazy_rows")
        rows = {} if active_rows is None else active_rows
        views = _views(updates, tables, moments, rows)
        block = jax.tree.map(lambda view, g: view.block(g), views, updates)
        held: Any = _WHOLE
        if moments == "freeze":
            held = beside_params(inner, state, views, rest=_WHOLE, by="lazy_rows")
        take = lambda views, tree: jax.tree.map(lambda v, x: v.take(x), views, tree)
        proposed, after = inner.update(
            block,
            take(held, state),
            None if params is None else take(views, params),
            **extra_args,
        )
        put = lambda view, old, new: view.put(old, new)
        after = jax.tree.map(put, held, state, after)
        return jax.tree.map(lambda view, u: view.give(u), views, proposed), after

    return transformation(init, update, one_leaf=True)


class _Whole:
    """How to see a leaf that is no table: as it is."""

    def block(self, grad: Any) -> Any:
        """What `inner` gets as the gradient."""
        return grad

    def take(self, x: Any) -> Any:
        """What `inner` gets of a parameter or of its own state."""
        return x

    def put(self, old: Any, new: Any) -> Any:
        """The next state, from the last one and what `inner` made of its part."""
        del old
        return new

    def give(self, update: Any) -> Any:
        """The update, from that of `inner`."""
        return update


@dataclasses.dataclass(frozen=True)
class _Masked(_Whole):
    """A dense table: `inner` sees it all, and what it does to other rows is void."""

    path: str
    touched: jax.Array

    def put(self, old: Any, new: Any) -> Any:
        if not _has_rows(old, self.touched.shape[0], self.path):
            return new
        return jnp.where(self._over(new), new, old)

    def give(self, update: Any) -> Any:
        return jnp.where(self._over(update), update, jnp.zeros((), update.dtype))

    def _over(self, x: Any) -> jax.Array:
        return jnp.expand_dims(self.touched, tuple(range(1, x.ndim)))


@dataclasses.dataclass(frozen=True)
class _Block(_Whole):
    """A row-sparse gradient: `inner` sees the looked-up rows and nothing else."""

    path: str
    rows: RowSparse

    def block(self, grad: Any) -> Any:
        del grad  # its duplicates are not summed yet
        return self.rows.values

    def take(self, x: Any) -> Any:
        if not _has_rows(x, self.rows.num_rows, self.path):
            return x
        # Padding reads zeros, of which every optimizer makes zeros or nothing.
        return x.at[self.rows.indices].get(
            mode="fill", fill_value=0, out_sharding=whole_rows(x)
        )

    def put(self, old: Any, new: Any) -> Any:
        if not _has_rows(old, self.rows.num_rows, self.path):
            return new
        return old.at[self.rows.indices].set(
            new, mode="drop", unique_indices=True, out_sharding=typed_sharding(old)
        )

    def give(self, update: Any) -> Any:
        return self.rows.with_values(update)


_WHOLE = _Whole()


def _has_rows(x: Any, num_rows: int, path: str) -> bool:
    """Whether a part of the state is kept row by row, and not for the whole table."""
    if jnp.ndim(x) and x.shape[0] != num_rows:
        raise ValueError(
            f"lazy_rows needs an optimizer that works row by row, but for the table at "
            f"{path!r} of {num_rows} rows it keeps an array of shape {x.shape}."
        )
    return jnp.ndim(x) > 0


def _views(
    updates: optax.Updates, tables: Selector, moments: Moments, active_rows: Any
) -> Any:
    """For every leaf of the updates, how `inner` is to see it."""
    update_checks.inexact_updates(updates, by="lazy_rows")
    grads, layout = flatten(updates)
    flags = row_matches(updates, tables, name="tables")
    paths = [path for path, _ in leaves_with_paths(updates)]
    known = [path for path, flag in zip(paths, flags, strict=True) if flag]
    active_rows = by_path(active_rows, known, holes(updates))
    views: list[_Whole] = []
    for path, grad, is_table in zip(paths, grads, flags, strict=True):
        if isinstance(grad, RowSparse):
            _check_sparse(path, is_table, moments, active_rows)
            views.append(_Block(path, grad.summed()))
        elif is_table:
            views.append(_Masked(path, touched(path, grad, active_rows.get(path))))
        else:
            views.append(_WHOLE)
    return jax.tree.unflatten(layout, views)


def _check_sparse(path: str, is_table: bool, moments: Moments, active: Any) -> None:
    if not is_table:
        raise ValueError(f"the gradient at {path!r} is a RowSparse, but no table's.")
    if moments != "freeze":
        raise ValueError(
            f"the gradient at {path!r} is a RowSparse, which needs moments='freeze'."
        )
    if path in active:
        raise ValueError(f"active_rows names {path!r}, whose gradient is a RowSparse.")
