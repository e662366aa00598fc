"""Rows of tables that an earlier call of a window touched."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import checks, windows
from .data_flow import sources
from .leaf_rules import made_from
from .paths import leaves_with_paths, path_order
from .row_ids import touched
from .row_views import Masked

Touched = tuple[jax.Array, ...] | jax.Array
"""A bool for each row of each table, in the order of their paths."""


class WindowsOf:
    """By path, the windows of a state that what `inner` makes of an update hangs on."""

    def __init__(self, inner: optax.GradientTransformationExtraArgs):
        self._inner = inner
        self._known: dict[Any, dict[str, int]] = {}

    def __call__(
        self, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]
    ) -> dict[str, int]:
        """Traces once for all trees that are alike."""
        leaves, layout = jax.tree.flatten((updates, state, params))
        shapes = [(jnp.shape(x), jnp.result_type(x)) for x in leaves]
        kind = layout, tuple(shapes), frozenset(extra_args)
        if kind not in self._known:
            self._known[kind] = self._traced(updates, state, params, extra_args)
        return self._known[kind]

    def _traced(
        self, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]
    ) -> dict[str, int]:
        leaves, layout = jax.tree.flatten((updates, state, params))
        paths = [path for path, _ in leaves_with_paths(updates)]
        bits: dict[int, int] = {}
        for i, call in enumerate(windows.calls(state)):
            bits[id(call)] = bits.get(id(call), 0) | 1 << i

        def step(*leaves: Any) -> list[Any]:
            args = jax.tree.unflatten(layout, leaves)
            return jax.tree.leaves(self._inner.update(*args, **extra_args)[0])

        try:
            traced = jax.make_jaxpr(step)(*leaves)
        except Exception:  # such as extra arguments that init has not
            return dict.fromkeys(paths, windows.ALL)
        found = sources(traced, [bits.get(id(leaf), 0) for leaf in leaves])
        return dict(zip(paths, found, strict=True))


def none_touched(params: optax.Params, are_tables: list[bool]) -> Touched:
    """No row of any table; read from the tables, to lie where their rows do."""
    leaves = leaves_with_paths(params)
    if not leaves:  # one stands for all where optax.tree.map_params shows none
        return jnp.zeros((), bool)
    none = lambda table: jnp.zeros_like(touched("", table, None))
    tables = [leaves[i][1] for i in path_order(params) if are_tables[i]]
    return tuple(made_from(table, none) for table in tables)


def since_window_began(views: Any, before: Touched) -> Any:
    """The same views, of the rows that any call of the window touched so far."""
    paths = sorted(_tables(views))
    known = list(before) if isinstance(before, tuple) else []
    checks.same_count(paths, known, by="lazy_rows")
    earlier = dict(zip(paths, known, strict=True))
    either = lambda v: v.with_earlier(earlier[v.path]) if isinstance(v, Masked) else v
    return jax.tree.map(either, views)


def still_touched(
    views: Any, old: Touched, which: dict[str, int], before: Any, after: Any
) -> Touched:
    """The rows touched now, of tables whose windows have not ended.

    Args:
      views: as `since_window_began` made them.
      old: what was touched before the call.
      which: the windows of each table.
      before: the state of the optimizer before the call.
      after: the one that it gave.
    """
    tables = _tables(views)
    if not tables:
        return old

    def keep(path: str, old: Any) -> Any:
        ended = windows.ended(after, which[path])
        skipped = windows.stood_still(before, after, which[path])
        return ~ended & jnp.where(skipped, old, tables[path].touched)

    return tuple(map(keep, sorted(tables), old))


def _tables(views: Any) -> dict[str, Masked]:
    """The views of dense tables, by path."""
    return {v.path: v for v in jax.tree.leaves(views) if isinstance(v, Masked)}
