"""How a gradient of looked-up rows is had without one of the whole table."""

import contextlib
from collections.abc import Callable, Generator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors, nnx

from .._core import checks
from .._core.row_ids import in_range
from .._core.shardings import replicated
from ..selection.row_sparse import RowSparse


class Tape:
    """The look-ups of one pass through a loss: for every table, in the order of calls.

    The tables are constants. To each look-up a zero, its shift, is added, whose
    gradient is that of the rows. How many there are and of what shape is not known
    before the loss was traced once, without shifts.

    Args:
      tables: the tables by their paths.
      shifts: for every path that is looked up, a list of arrays.
      token: a scalar that is differentiated together with the shifts.
    """

    def __init__(
        self,
        tables: Mapping[str, jax.Array],
        shifts: Mapping[str, list[jax.Array]] | None = None,
        token: Any = 0.0,
    ):
        self.guarded = {path: _guard(path, x, token) for path, x in tables.items()}
        """What a model is to hold in place of its tables."""
        self.ids: dict[str, list[jax.Array]] = {path: [] for path in tables}
        self.rows: dict[str, list[jax.Array]] = {path: [] for path in tables}
        self._tables, self._shifts = tables, shifts
        self._paths = {id(table): path for path, table in self.guarded.items()}
        self._level = nnx.Variable(0)

    @contextlib.contextmanager
    def recording(self) -> Generator[None, None, None]:
        """While every `RowEmbed` asks this tape for its rows."""
        before = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(before)

    def knows(self, table: jax.Array) -> bool:
        """Whether an array is one of the guarded tables."""
        return id(table) in self._paths

    def look_up(
        self, table: jax.Array, ids: jax.Array, *, out_sharding: Any = None
    ) -> jax.Array:
        """Rows of a guarded table as `nnx.Embed` reads them, in the table's dtype."""
        if not (self.knows(table) and self._is_same_level()):
            raise ValueError(
                "row_value_and_grad does not see a look-up inside jit, remat, scan, "
                "vmap or another transformation within the loss, or in a table made "
                "from the parameter: call RowEmbed outside of it."
            )
        path = self._paths[id(table)]
        ids = _from_the_start(ids, table.shape[0])
        at = self._tables[path].at[ids]
        rows = at.get(mode="fill", fill_value=jnp.nan, out_sharding=out_sharding)
        if self._shifts is not None:
            rows = rows + self._shifts[path][len(self.ids[path])]
        self.ids[path].append(ids)
        self.rows[path].append(rows)
        return rows

    def _is_same_level(self) -> bool:
        """Whether the current trace is that of the loss.

        A look-up that is traced further in may run many times, or its trace may be
        kept by `jit` and run again without a tape.
        """
        try:
            self._level.set_value(0)
        except errors.TraceContextError:
            return False
        return True


def checked_ids(inputs: Any) -> jax.Array:
    """What a look-up is given, if it is an array of integers."""
    ids = checks.array(ids=inputs)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise ValueError(f"ids must be integers, got {ids.dtype}.")
    return ids


_ACTIVE: ContextVar[Tape | None] = ContextVar("tape", default=None)


def active() -> Tape | None:
    """The tape that is recording now, if any."""
    return _ACTIVE.get()


def zero_shifts(trace: Callable[[], Mapping[str, list[jax.Array]]]) -> Any:
    """Zeros for every look-up of a pass that is traced, but not computed."""
    return jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), jax.eval_shape(trace)
    )


def row_sparse(table: jax.Array, ids: list[Any], cotangents: list[Any]) -> RowSparse:
    """All look-ups in one table as its gradient."""
    row_shape = table.shape[1:]
    # Out of range, rows read NaN and have no gradient, known or not. On a mesh of
    # Explicit axes, every device needs all look-ups.
    flat_ids = [in_range(replicated(x).reshape(-1), table.shape[0]) for x in ids]
    rows = [replicated(x).reshape(-1, *row_shape) for x in cotangents]
    return RowSparse.from_lookup(
        jnp.concatenate([jnp.zeros(0, jnp.int32), *flat_ids]),
        jnp.concatenate([jnp.zeros((0, *row_shape), table.dtype), *rows]),
        table.shape[0],
    )


def _from_the_start(ids: jax.Array, num_rows: int) -> jax.Array:
    """The ids as `Embed` reads them: those below zero count from the end."""
    if num_rows == 1:  # Embed does not look at them then
        return jnp.zeros_like(ids)
    if ids.dtype.itemsize < 4:
        ids = ids.astype(jnp.int32)
    return jnp.where(ids < 0, ids + num_rows, ids)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _guard(path: str, table: jax.Array, token: Any) -> jax.Array:
    """`table`, with an error for who asks for its gradient.

    JAX runs the backward rule if, and only if, the loss depends on the result in a
    differentiable way. The token is there to be differentiated in the table's place.
    """
    del path, token
    return table


def _guard_forward(path: str, table: jax.Array, token: Any) -> tuple[jax.Array, None]:
    del path, token
    return table, None


def _guard_backward(path: str, saved: None, cotangent: jax.Array) -> Any:
    del saved, cotangent
    raise ValueError(
        f"the loss uses the table at {path!r} in another way than by a look-up that "
        "row_value_and_grad sees (attend, a penalty, a look-up inside jit, remat, scan "
        "or vmap), so that its gradient is dense: use Flax's Embed there, or stop the "
        "gradient."
    )


_guard.defvjp(_guard_forward, _guard_backward)
