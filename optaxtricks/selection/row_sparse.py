"""A gradient of an embedding table that holds only the rows that were looked up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.paths import OneLeaf
from .._core.row_blocks import read_rows, write_rows
from .._core.row_ids import check_ids, ids_array, in_range
from .._core.serialized import serialized_node
from .._core.shardings import typed_sharding, whole_rows

# What a map over arrays leaves of this number tells whether it changed the indices.
_SEAL = np.full((), 0x5EED5, np.int32)


@serialized_node(tuple)
@jax.tree_util.register_pytree_with_keys_class
class RowSparse(OneLeaf):
    r"""Rows ``values`` at ``indices`` of a table, and zero elsewhere.

    A leaf of a gradient tree, in place of an array of the table's shape, for
    :func:`lazy_rows`, which gives an update of the same kind. ``param + update``, and
    with it ``optax.apply_updates``, adds the rows in place.

    JAX sees a node with arrays. Whatever maps over the arrays of a gradient tree would
    change ``indices`` as well: put clipping, scaling and the rest *inside*
    :func:`lazy_rows`, where they see arrays of k rows. To add up two gradients, add
    the nodes: ``jax.tree.map(operator.add, a, b, is_leaf=lambda x: isinstance(x,
    RowSparse))``.

    Guarantees:
      - Arithmetic on the arrays (a sum, a difference, a product, a mean over devices)
        is found out by a third of them, a constant: an error or, where it is traced,
        rows of NaN. ``jnp.zeros_like`` of them is a gradient of no rows.
      - ``jax.export`` serializes programs that take or give such nodes; to read one,
        import this package first.

    Args:
      indices: integers of shape ``(k,)`` in ``[0, num_rows]``; ``num_rows`` is
        padding, whose row counts for nothing. Repeated ones add up.
      values: floats of shape ``(k, ...)``, the rows.
      num_rows: number of rows of the table.

    Raises:
      ValueError: shapes that disagree, or an index out of range that is known.
      TypeError: an argument of the wrong kind, such as float indices.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> rows = ot.RowSparse(jnp.array([2, 0]), jnp.array([[1.0], [5.0]]), 3)
      >>> (jnp.ones((3, 1)) + rows).tolist()
      [[6.0], [1.0], [2.0]]
    """

    # NumPy then leaves `array + rows` to __radd__, as JAX does.
    __array_ufunc__ = None

    indices: jax.Array
    values: jax.Array
    seal: Any
    num_rows: int
    distinct: bool
    """Whether no index but padding stands twice, as after :meth:`from_lookup`."""

    def __init__(self, indices: Any, values: Any, num_rows: int):
        _check_num_rows(num_rows)
        indices = ids_array(indices=indices)
        values = checks.array(values=values)
        check_ids(indices, num_rows, what="indices", padding=True)
        _check_floats(values)
        if indices.ndim != 1 or values.ndim < 1 or values.shape[0] != indices.size:
            raise ValueError(
                "indices of shape (k,) go with values of shape (k, ...), got "
                f"{indices.shape} and {values.shape}."
            )
        self.indices, self.values, self.seal = indices, values, _SEAL
        self.num_rows, self.distinct = num_rows, False

    @classmethod
    def from_lookup(cls, ids: Any, cotangents: Any, num_rows: int) -> "RowSparse":
        """The gradient of a table from those of its looked-up rows.

        Rows that were looked up several times are added up, in float32 or wider.
        Shapes are fixed: as many rows as ids, ascending, and padding at the end.

        Args:
          ids: integers of any shape in ``[0, num_rows]``, where ``num_rows`` is
            padding. Under ``jit`` others cannot be refused, and are dropped.
          cotangents: floats of shape ``ids.shape + row shape``, the gradient with
            respect to ``table[ids]``.
          num_rows: number of rows of the table.

        Returns:
          A :class:`RowSparse` whose indices are distinct but for padding, the rows
          of which are zero.

        Raises:
          ValueError: shapes that disagree, or an id out of range that is known.
          TypeError: ids that are no integers, or cotangents that are no floats.

        Examples:
          >>> import jax.numpy as jnp
          >>> import optaxtricks as ot
          >>> ids, rows = jnp.array([[3, 1, 3]]), jnp.array([[[1.0], [2.0], [4.0]]])
          >>> grad = ot.RowSparse.from_lookup(ids, rows, 5)
          >>> grad.indices.tolist(), grad.values.tolist()
          ([1, 3, 5], [[2.0], [5.0], [0.0]])
        """
        _check_num_rows(num_rows)
        ids, cotangents = ids_array(ids=ids), checks.array(cotangents=cotangents)
        check_ids(ids, num_rows, what="ids", padding=True)
        _check_floats(cotangents)
        if cotangents.shape[: ids.ndim] != ids.shape:
            raise ValueError(
                "cotangents must have the shape of ids and then that of a row, got "
                f"{cotangents.shape} for ids of shape {ids.shape}."
            )
        rows = cotangents.reshape(ids.size, *cotangents.shape[ids.ndim :])
        indices, values = _summed(ids.reshape(-1), rows, num_rows)
        return cls._of(indices, values, num_rows, True)

    @classmethod
    def _of(
        cls,
        indices: Any,
        values: Any,
        num_rows: int,
        distinct: bool,
        seal: Any = _SEAL,
    ) -> Any:
        """Without checks: JAX puts more than arrays into a node."""
        new = object.__new__(cls)
        new.indices, new.values, new.seal = indices, values, seal
        new.num_rows, new.distinct = num_rows, distinct
        return new

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the table."""
        return (self.num_rows, *self.values.shape[1:])

    @property
    def ndim(self) -> int:
        """The rank of the table."""
        return self.values.ndim

    @property
    def dtype(self) -> Any:
        """The dtype of the rows."""
        return self.values.dtype

    def with_values(self, values: jax.Array) -> "RowSparse":
        """Other rows at the same indices."""
        return self._of(self.indices, values, self.num_rows, self.distinct)

    def sound(self) -> "RowSparse":
        """The same gradient, with indices in range and a check of the seal."""
        if self.distinct and self.seal is _SEAL:
            return self
        if not jnp.issubdtype(self.indices.dtype, jnp.integer):
            raise TypeError(
                f"the indices of a RowSparse became {self.indices.dtype}: {_CHANGED}"
            )
        indices = in_range(self.indices, self.num_rows)
        values = self.values
        if self.seal is not _SEAL:
            if jnp.ndim(self.seal):
                raise ValueError(
                    f"a RowSparse is stacked, {jnp.shape(self.seal)} in one: use it "
                    "inside jax.vmap."
                )
            # Of a difference the seal is 0 too, but there is something left of it.
            nothing = ~((self.indices != 0).any() | (self.values != 0).any())
            empty = (self.seal == 0) & nothing
            broken = ~empty & (self.seal != _SEAL)
            if not isinstance(broken, jax.core.Tracer) and broken:
                raise ValueError(f"the indices of a RowSparse were changed: {_CHANGED}")
            # A broken one must not be lost among ids out of range.
            indices = jnp.where(empty, self.num_rows, jnp.where(broken, 0, indices))
            values = jnp.where(broken, jnp.nan, values).astype(self.values.dtype)
        return self._of(indices, values, self.num_rows, self.distinct)

    def summed(self) -> "RowSparse":
        """The same gradient with distinct indices."""
        rows = self.sound()
        if self.distinct:
            return rows
        indices, values = _summed(rows.indices, rows.values, self.num_rows)
        return self._of(indices, values, self.num_rows, True)

    def to_dense(self) -> jax.Array:
        """An array of the table's shape."""
        return jnp.zeros(self.shape, self.dtype) + self

    def __radd__(self, table: Any) -> jax.Array:
        table, sparse = jnp.asarray(table), self.sound()
        if table.shape != self.shape:
            raise ValueError(
                f"a RowSparse for a table of shape {self.shape} cannot be added to an "
                f"array of shape {table.shape}."
            )
        wide = np.promote_types(table.dtype, sparse.dtype)
        if wide.itemsize > table.dtype.itemsize:
            return sparse.summed()._added_wide(table, wide)
        return table.at[sparse.indices].add(
            sparse.values.astype(table.dtype),
            mode="drop",
            unique_indices=self.distinct,
            out_sharding=typed_sharding(table),
        )

    def _added_wide(self, table: jax.Array, wide: Any) -> jax.Array:
        """The sum, rounded once as that of arrays is, and not its rows first."""
        rows = read_rows(table, self.indices).astype(wide) + self.values.astype(wide)
        return write_rows(table, self.indices, rows.astype(table.dtype))

    def __add__(self, other: Any) -> Any:
        """The sum with another, as the rows of both; with an array, an array."""
        if not isinstance(other, RowSparse):
            return self.__radd__(other)
        if other.shape != self.shape:
            raise ValueError(
                f"a RowSparse for a table of shape {self.shape} cannot be added to one "
                f"of shape {other.shape}."
            )
        one, two = self.sound(), other.sound()
        return self._of(
            jnp.concatenate([one.indices, two.indices]),
            jnp.concatenate([one.values, two.values]),
            self.num_rows,
            False,
        )

    def __repr__(self) -> str:
        return (
            f"RowSparse(indices={self.indices!r}, values={self.values!r}, "
            f"num_rows={self.num_rows})"
        )

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """The arrays, named, and what is known without them."""
        key = jax.tree_util.GetAttrKey
        names = ("indices", "values", "seal")
        children = tuple((key(name), getattr(self, name)) for name in names)
        return children, (self.num_rows, self.distinct)

    @classmethod
    def tree_unflatten(cls, fixed: Any, children: Any) -> "RowSparse":
        """The inverse, for whatever JAX puts in the arrays' places."""
        (indices, values, seal), (num_rows, distinct) = children, fixed
        return cls._of(indices, values, num_rows, distinct, seal)


_CHANGED = (
    "a transformation outside lazy_rows did arithmetic on its arrays; put it inside."
)


def _summed(
    ids: jax.Array, rows: jax.Array, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Distinct ids in ascending order, padding at the end, and the sums of rows."""
    count = ids.shape[0]
    ids = in_range(ids, num_rows)
    ordered, order = jax.lax.sort((ids, jnp.arange(count, dtype=ids.dtype)), num_keys=1)
    starts = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])[:count]
    slot = jnp.cumsum(starts, dtype=jnp.int32) - 1
    none = jnp.full(count, num_rows, jnp.int32)
    indices = none.at[slot].set(ordered, indices_are_sorted=True)
    # Padding has slots of its own, at the end; their rows stay zero.
    slot = jnp.where(ordered == num_rows, count, slot)
    # In this order slots ascend; of many that do not, a TPU sorts them once more.
    wide = np.promote_types(rows.dtype, np.float32)
    rows = rows.at[order].get(mode="promise_in_bounds", out_sharding=whole_rows(rows))
    sums = jnp.zeros_like(rows, wide)
    sums = sums.at[slot].add(rows.astype(wide), mode="drop", indices_are_sorted=True)
    return indices, sums.astype(rows.dtype)


def _check_floats(rows: Any) -> None:
    if not jnp.issubdtype(rows.dtype, jnp.inexact):
        raise TypeError(f"rows must be floats, got {rows.dtype}.")


def _check_num_rows(num_rows: Any) -> None:
    if isinstance(num_rows, bool) or not isinstance(num_rows, int | np.integer):
        raise TypeError(f"num_rows must be an int, got {num_rows!r}.")
    if not 0 < num_rows < 2**31:
        raise ValueError(f"num_rows must lie in [1, 2**31), got {num_rows!r}.")
