"""Rows of embedding tables that were not looked up stay where they are."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import optax

from .._core import checks, update_checks, windows
from .._core.alignment import params_like
from .._core.build import transformation
from .._core.paths import flatten, holes, leaves_with_paths
from .._core.row_ids import by_path, touched
from .._core.row_views import WHOLE, Block, Masked, Whole
from .._core.row_windows import (
    WindowsOf,
    none_touched,
    since_window_began,
    still_touched,
)
from .._core.selectors import Selector, row_matches
from .._core.serialized import serialized_state
from .._core.state_parts import beside_params, owners, transformation_of
from ..selection.row_sparse import RowSparse

Moments = Literal["decay", "freeze"]


@serialized_state
class LazyRowsState(NamedTuple):
    """State of :func:`lazy_rows` around an optimizer that accumulates steps.

    Attributes:
      touched: for each table a bool for each row, whether a call of this window
        touched it so far.
      inner: the state of the wrapped optimizer.
    """

    touched: tuple[jax.Array, ...] | jax.Array
    inner: optax.OptState


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
    same. It needs no memory of the table's size either, but with ``"freeze"`` on a CPU,
    where XLA copies the old moments. It does save time where the gradient of a table is
    a :class:`RowSparse`: then, with ``moments="freeze"``, its rows of parameter and
    state are gathered, ``inner`` runs on the ``(k, d)`` block, and the rows go back in
    place. The cost grows with the rows, not with the table.

    It has no effect where every row has a gradient: on an embedding tied to the output
    layer, or behind noise or weight decay added to the gradient (put these inside).

    Guarantees:
      - Touched rows, and all leaves that are no tables, move as under ``inner``; with
        every row touched, updates and state are ``inner``'s.
      - Untouched rows get an update of exactly zero.
      - A :class:`RowSparse` gives what its dense form gives with its indices as
        ``active_rows``, if ``inner`` works row by row (see ``inner``). Compiled with
        donated buffers it copies no table; what draws at random inside draws by the
        place in the block, and not by the row; but XLA's CPU backend widens a bfloat16
        table to scatter into it, which takes time and memory of the table's size.
      - Around an ``inner`` that accumulates steps (:func:`tiger` and
        :func:`at_window_end` by their ``accumulate_steps``, ``optax.MultiSteps``,
        ``optax.apply_every``) every row moves that a call of the window touched: as
        without accumulation on window means, with the ids of all calls as
        ``active_rows``. Each table goes by its own windows: those that its update
        hangs on.
      - Inside ``optax.MultiSteps`` likewise, but there ``active_rows`` must name the
        rows of the whole window. Neither way can a :class:`RowSparse` accumulate.
      - No communication but ids and touched rows, and a bit a row where rows are
        sharded by columns.

    Args:
      inner: any optimizer whose arithmetic on a row looks at that row alone, such
        as Adam, Lion, or Tiger with the tables as its ``embeddings``. Not LAMB, Muon,
        or Tiger without ``embeddings``, which measure a whole leaf: of a
        :class:`RowSparse` they would measure the block.
      tables: a selector (see :func:`select`) of the embedding tables.
      moments: ``"decay"`` or ``"freeze"``; that needs moments which rest inside a
        window, and so not those of :func:`tiger` with ``accumulate_steps``.

    Returns:
      A transformation whose state is that of ``inner``, or, if that accumulates, a
      :class:`LazyRowsState` of a bool for each row around it. Its ``update`` takes the
      extra argument ``active_rows``: a dict, from a table's path or nested like the
      parameters, to integer ids of any shape (the number of rows is padding; under
      ``jit`` ids out of range are dropped) or a bool for each row. (Linen's
      ``TrainState.apply_gradients`` hands on no extra arguments: call ``tx.update``.)

    Raises:
      ValueError: ``moments`` is neither; from ``init``, ``tables`` matches no leaf, or
        a scalar, or moments to freeze change inside a window; from ``update``, wrong
        paths or ids in ``active_rows``, a :class:`RowSparse` that is no table's, comes
        with ``"decay"`` or to an ``inner`` that accumulates, or a state of ``inner``
        without rows.
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
    checks.chosen(("decay", "freeze"), moments=moments)
    inner = transformation_of(inner=inner)
    windows_of = WindowsOf(inner)

    def init(params: optax.Params) -> optax.OptState:
        checks.inexact_leaves(params, by="lazy_rows")
        flags = row_matches(params, tables, name="tables")
        state = inner.init(params)
        if not windows.calls(state):
            return state
        if moments == "freeze":
            windowed = windows_of(params, state, params, {})
            _check_rests(inner, state, params, flags, windowed)
        return LazyRowsState(touched=none_touched(params, flags), inner=state)

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
        accumulates = bool(windows.calls(state))
        if accumulates:
            update_checks.state_of(LazyRowsState, state, by="lazy_rows")
        before = state.inner if isinstance(state, LazyRowsState) else state
        rows = {} if active_rows is None else active_rows
        views = _views(updates, tables, moments, rows, accumulates)
        if isinstance(state, LazyRowsState):
            views = since_window_began(views, state.touched)
        block = jax.tree.map(lambda view, g: view.block(g), views, updates)
        held: Any = WHOLE
        if moments == "decay":
            seen = _awaited(inner, before, views)
        else:
            held = beside_params(inner, before, views, rest=WHOLE, by="lazy_rows")
            # Of rows that are not active a sum may hold gradients; it starts anew.
            whole = lambda view, place: WHOLE if place == "sums" else view
            held = windows.by_place(whole, held)
            seen = _taken(held, before)
        proposed, after = inner.update(
            block,
            seen,
            None if params is None else _taken(views, params),
            **extra_args,
        )
        put = lambda view, old, new: view.put(old, new)
        after = jax.tree.map(put, held, before, after)
        if isinstance(state, LazyRowsState):
            which = windows_of(updates, before, params, extra_args)
            still = still_touched(views, state.touched, which, before, after)
            after = LazyRowsState(touched=still, inner=after)
        return jax.tree.map(lambda view, u: view.give(u), views, proposed), after

    return transformation(init, update, one_leaf=True)


def _views(
    updates: optax.Updates,
    tables: Selector,
    moments: Moments,
    active_rows: Any,
    accumulates: bool,
) -> Any:
    """For every leaf of the updates, how `inner` is to see it."""
    update_checks.inexact_updates(updates, by="lazy_rows")
    grads, layout = flatten(updates)
    flags = row_matches(updates, tables, name="tables")
    paths = [path for path, _ in leaves_with_paths(updates)]
    known = [path for path, flag in zip(paths, flags, strict=True) if flag]
    active_rows = by_path(active_rows, known, holes(updates))
    views: list[Whole] = []
    for path, grad, is_table in zip(paths, grads, flags, strict=True):
        if isinstance(grad, RowSparse):
            _check_sparse(path, is_table, moments, active_rows, accumulates)
            views.append(Block(path, grad.summed()))
        elif is_table:
            views.append(Masked(path, touched(path, grad, active_rows.get(path))))
        else:
            views.append(WHOLE)
    return jax.tree.unflatten(layout, views)


def _taken(views: Any, tree: Any) -> Any:
    """What `inner` sees of a tree."""
    return jax.tree.map(lambda view, x: view.take(x), views, tree)


def _awaited(inner: Any, state: Any, views: Any) -> Any:
    """The state of `inner`, in which each table's part is read after its gradient."""
    seen_as = dict(leaves_with_paths(views))
    parts, layout = jax.tree.flatten(state)
    pairs = zip(parts, owners(inner, state, views), strict=True)
    seen = [x if path is None else seen_as[path].awaited(x) for x, path in pairs]
    return jax.tree.unflatten(layout, seen)


def _check_sparse(
    path: str, is_table: bool, moments: Moments, active: Any, accumulates: bool
) -> None:
    if not is_table:
        raise ValueError(f"the gradient at {path!r} is a RowSparse, but no table's.")
    if accumulates:
        raise ValueError(
            f"the gradient at {path!r} is a RowSparse, which inner cannot accumulate: "
            "give update its to_dense(), or the rows of the whole window at once and "
            "an inner that does not accumulate."
        )
    if moments != "freeze":
        raise ValueError(
            f"the gradient at {path!r} is a RowSparse, which needs moments='freeze'."
        )
    if path in active:
        raise ValueError(f"active_rows names {path!r}, whose gradient is a RowSparse.")


def _check_rests(
    inner: Any, state: Any, params: Any, flags: list[bool], windowed: dict[str, int]
) -> None:
    """Rejects a state of rows that changes inside a window: it cannot be frozen."""
    pairs = zip(windowed.items(), flags, strict=True)
    names = [path if is_table and which else "" for (path, which), is_table in pairs]
    names = jax.tree.unflatten(flatten(params)[1], names)

    def check(path: str, place: windows.Place) -> None:
        if path and place in ("outside", "moves"):
            raise ValueError(
                f"moments='freeze' needs the state of the table at {path!r} to rest "
                "inside a window, but inner changes it at every call. Accumulate "
                "outside: optax.MultiSteps(ot.lazy_rows(ot.tiger(...), ...), k)."
            )

    held = beside_params(inner, state, names, rest="", by="lazy_rows")
    windows.by_place(check, held)
