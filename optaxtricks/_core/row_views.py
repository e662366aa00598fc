"""How an optimizer that works row by row is to see a leaf and its state."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from .row_blocks import read_rows, write_rows


class Whole:
    """How to see a leaf that is no table: as it is."""

    def block(self, grad: Any) -> Any:
        """What `inner` gets as the gradient."""
        return grad

    def take(self, x: Any) -> Any:
        """What `inner` gets of a parameter or of its own state."""
        return x

    def awaited(self, x: Any) -> Any:
        """A part of the state of `inner`, read when it is known what was touched."""
        return x

    def put(self, old: Any, new: Any) -> Any:
        """The next state, from the last one and what `inner` made of its part."""
        del old
        return new

    def give(self, update: Any) -> Any:
        """The update, from that of `inner`."""
        return update


@dataclasses.dataclass(frozen=True)
class Masked(Whole):
    """A dense table: `inner` sees it all, and what it does to other rows is void."""

    path: str
    touched: jax.Array

    def with_earlier(self, rows: Any) -> "Masked":
        """The same, where rows that were touched earlier are so still."""
        if jnp.shape(rows) != self.touched.shape:
            raise ValueError(
                f"lazy_rows was initialised for {len(rows)} rows at {self.path!r} but "
                f"got updates with {len(self.touched)}."
            )
        return Masked(self.path, self.touched | rows)

    def awaited(self, x: Any) -> Any:
        # Else XLA's GPU backend may make new moments in the kernel that tests the
        # gradient, and copies the old ones for the one that makes the update.
        return jax.lax.optimization_barrier((x, self.touched))[0]

    def put(self, old: Any, new: Any) -> Any:
        if not _has_rows(old, self.touched.shape[0], self.path):
            return new
        return jnp.where(self._over(new), new, old)

    def give(self, update: Any) -> Any:
        return jnp.where(self._over(update), update, jnp.zeros((), update.dtype))

    def _over(self, x: Any) -> jax.Array:
        return jnp.expand_dims(self.touched, tuple(range(1, x.ndim)))


@dataclasses.dataclass(frozen=True)
class Block(Whole):
    """A row-sparse gradient: `inner` sees the looked-up rows and nothing else.

    Attributes:
      rows: a RowSparse of distinct rows.
    """

    path: str
    rows: Any

    def block(self, grad: Any) -> Any:
        del grad  # its duplicates are not summed yet
        return self.rows.values

    def take(self, x: Any) -> Any:
        if not _has_rows(x, self.rows.num_rows, self.path):
            return x
        # Padding reads zeros, of which every optimizer makes zeros or nothing.
        return read_rows(x, self.rows.indices)

    def put(self, old: Any, new: Any) -> Any:
        if not _has_rows(old, self.rows.num_rows, self.path):
            return new
        return write_rows(old, self.rows.indices, new)

    def give(self, update: Any) -> Any:
        return self.rows.with_values(update)


WHOLE = Whole()


def _has_rows(x: Any, num_rows: int, path: str) -> bool:
    """Whether a part of the state is kept row by row, and not for the whole table."""
    if jnp.ndim(x) and x.shape[0] != num_rows:
        raise ValueError(
            f"lazy_rows needs an optimizer that works row by row, but for the table at "
            f"{path!r} of {num_rows} rows it keeps an array of shape {x.shape}."
        )
    return jnp.ndim(x) > 0
