"""A table of what an optimizer trains and what its state costs."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from .._core import checks
from .._core.paths import leaves_with_paths
from .._core.state_parts import owners, transformation_of
from .._core.zero_flow import zero_outputs

_HEADER = ("path", "parameters", "trained", "state bytes", "per parameter")


def summary(tx: Any, params: Any, **extra_args: Any) -> str:
    """Tabulates parameters, trained parameters and optimizer state by top-level path.

    Everything is traced and nothing computed, so parameters of any size, or abstract
    ones, are summed up in the time of a trace.

    A leaf counts as trained unless the traced ``update`` gives it zeros whatever the
    gradients are, as under ``optax.set_to_zero`` or a mask that is ``False``. Of a
    leaf under a mask array all entries count. Where a leaf's update is zero for
    another reason, such as a learning rate of 0 in the state, it counts as trained.

    State is put down to the parameter that it belongs to, as ``optax.tree.map_params``
    says: momenta, moments, averages, whatever their shape. The line ``other`` has the
    rest: step counts, keys, hyperparameters, bits of masks.

    Args:
      tx: any Optax optimizer, ``optax.MultiSteps`` included.
      params: parameters of any kind: arrays, ``jax.ShapeDtypeStruct``, Linen dicts,
        ``nnx.State``.
      extra_args: what ``tx.update`` cannot do without, arrays or abstract ones.

    Returns:
      The table as text, one line for each first part of a path.

    Raises:
      ValueError: ``params`` has no leaf.
      TypeError: ``tx`` is no Optax optimizer.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> head = {"b": jnp.ones(2), "w": jnp.ones((8, 2))}
      >>> params = {"emb": jnp.ones((100, 8)), "head": head}
      >>> labels = ot.label_by_path({"^emb": "frozen"}, default="trained")
      >>> parts = {"frozen": optax.set_to_zero(), "trained": ot.lion(1e-3)}
      >>> print(ot.summary(optax.partition(parts, labels), params))
      path   parameters  trained  state bytes  per parameter
      emb           800        0            0            0.0
      head           18       18           72            4.0
      other                                 0
      total         818       18           72            0.1
    """
    tx = transformation_of(tx)
    checks.array_leaves(params, by="summary")
    abstract = jax.eval_shape(lambda tree: tree, params)
    names = [path for path, _ in leaves_with_paths(abstract)]
    if not names:
        raise ValueError("summary needs parameters, but there is no leaf.")
    sizes = [leaf.size for leaf in jax.tree.leaves(abstract)]
    state = jax.eval_shape(tx.init, abstract)
    moving = _trained(tx, abstract, state, extra_args)
    rows: dict[str, list[int]] = {}
    for name, size, moves in zip(names, sizes, moving, strict=True):
        row = rows.setdefault(_top(name), [0, 0, 0])
        row[0] += size
        row[1] += size if moves else 0
    other = 0
    held = zip(jax.tree.leaves(state), owners(tx, state, abstract), strict=True)
    for leaf, owner in held:
        bytes_held = leaf.size * leaf.dtype.itemsize
        if owner is None:
            other += bytes_held
        else:
            rows[_top(owner)][2] += bytes_held
    return _table(rows, other)


def _trained(
    tx: optax.GradientTransformationExtraArgs, params: Any, state: Any, extra_args: Any
) -> list[bool]:
    """For each leaf, whether its update can be anything but zero."""
    step = lambda grads, state, params, extra: jax.tree.leaves(
        tx.update(grads, state, params, **extra)[0]
    )
    traced = jax.make_jaxpr(step)(params, state, params, extra_args)
    return [not zero for zero in zero_outputs(traced)]


def _top(path: str) -> str:
    return path.partition("/")[0] or "(root)"


def _table(rows: dict[str, list[int]], other: int) -> str:
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    total[2] += other
    lines = [
        _HEADER,
        *[_line(name, row) for name, row in rows.items()],
        ("other", "", "", f"{other:,}", ""),
        _line("total", total),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _line(name: str, row: Sequence[int]) -> tuple[str, ...]:
    parameters, trained, held = row
    each = held / parameters if parameters else 0.0
    return name, f"{parameters:,}", f"{trained:,}", f"{held:,}", f"{each:.1f}"


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = line
    cells = [first.ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    return "  ".join(cells).rstrip()
