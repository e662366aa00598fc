"""A table of what an optimizer trains and what its state costs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax

from .._core import checks, programs
from .._core.factor_notes import asking, noted
from .._core.layers import Stacked, layer_axes
from .._core.paths import leaves_with_paths
from .._core.readings import by_name
from .._core.state_parts import nodes_of, owners, transformation_of
from .._core.zero_flow import zero_outputs
from ..transforms.monitor_groups import MonitorGroupsState

_HEADER = ("path", "parameters", "trained", "state bytes", "per parameter")


def summary(
    tx: Any, params: Any, *, stacked: Stacked | None = None, **extra_args: Any
) -> str:
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

    Where :func:`scale_by_path` or :func:`scale_by_depth` takes part, a column
    ``factor`` has what they multiply the updates of trained leaves by, from the
    smallest to the largest: ``varies`` where a schedule or a hyperparameter decides.
    An ``update`` that is jitted by itself and ran before keeps them to itself.

    Args:
      tx: any Optax optimizer, ``optax.MultiSteps`` included.
      params: parameters of any kind: arrays, ``jax.ShapeDtypeStruct``, Linen dicts,
        ``nnx.State``.
      stacked: the leaves that are stacks of layers, as a selector or pattern -> layer
        axis; a column ``layers`` then has their number of layers.
      extra_args: what ``tx.update`` cannot do without, arrays or abstract ones.

    Returns:
      The table as text, one line for each first part of a path.

    Raises:
      ValueError: ``params`` has no leaf; two monitors have the same name, as in
        :func:`metrics`; and as ``stacked``.
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
      >>> params = {"emb": jnp.ones((100, 8)), "layers": {"w": jnp.ones((12, 8, 8))}}
      >>> depth = ot.scale_by_depth(0.8, stacked="^layers/", first="^emb")
      >>> tx = optax.chain(ot.lion(1e-3), depth)
      >>> print(ot.summary(tx, params, stacked="^layers/"))
      path    parameters  trained  state bytes  per parameter  layers         factor
      emb            800      800        3,200            4.0                  0.055
      layers         768      768        3,072            4.0      12  0.0687 .. 0.8
      other                                  0
      total        1,568    1,568        6,272            4.0
    """
    tx = transformation_of(tx=tx)
    checks.array_leaves(params, by="summary")
    abstract = jax.eval_shape(lambda tree: tree, params)
    names = [path for path, _ in leaves_with_paths(abstract)]
    if not names:
        raise ValueError("summary needs parameters, but there is no leaf.")
    leaves = jax.tree.leaves(abstract)
    axes = layer_axes(abstract, stacked)
    state = jax.eval_shape(tx.init, abstract)
    _check_monitors(state)
    with asking():
        step = _traced(tx, abstract, state, extra_args)
    moving = [not zero for zero in zero_outputs(step)]
    factors = noted(step)
    rows: dict[str, _Row] = {}
    for name, leaf, moves, axis in zip(names, leaves, moving, axes, strict=True):
        row = rows.setdefault(_top(name), _Row())
        row.parameters += leaf.size
        row.trained += leaf.size if moves else 0
        row.layers += [] if axis is None else [leaf.shape[axis]]
        row.factors += [factors.get(name, 1.0)] if moves else []
    other = 0
    held = zip(jax.tree.leaves(state), owners(tx, state, abstract), strict=True)
    for leaf, owner in held:
        bytes_held = leaf.size * leaf.dtype.itemsize
        if owner is None:
            other += bytes_held
        else:
            rows[_top(owner)].held += bytes_held
    more = {"layers": stacked is not None, "factor": bool(factors)}
    return _table(rows, other, [name for name, shown in more.items() if shown])


def _check_monitors(state: Any) -> None:
    """Rejects names that `metrics` would reject, but ahead of any step."""
    monitors = [node.readings for _, node in nodes_of(state, MonitorGroupsState)]
    jax.eval_shape(by_name, [held for held in monitors if isinstance(held, dict)])


@dataclasses.dataclass
class _Row:
    """What a line of the table has, from all leaves below a first part of a path."""

    parameters: int = 0
    trained: int = 0
    held: int = 0
    layers: list[int] = dataclasses.field(default_factory=list)
    factors: list[Any] = dataclasses.field(default_factory=list)


def _traced(
    tx: optax.GradientTransformationExtraArgs, params: Any, state: Any, extra_args: Any
) -> "programs.ClosedJaxpr":
    """A step that gives the updates alone, gradients being what params are."""
    step = lambda grads, state, params, extra: jax.tree.leaves(
        tx.update(grads, state, params, **extra)[0]
    )
    return jax.make_jaxpr(step)(params, state, params, extra_args)


def _top(path: str) -> str:
    return path.partition("/")[0] or "(root)"


def _table(rows: dict[str, _Row], other: int, more: Sequence[str]) -> str:
    whole = _Row(
        parameters=sum(row.parameters for row in rows.values()),
        trained=sum(row.trained for row in rows.values()),
        held=sum(row.held for row in rows.values()) + other,
    )
    lines = [
        (*_HEADER, *more),
        *[_line(name, row, more) for name, row in rows.items()],
        ("other", "", "", f"{other:,}", "", *[""] * len(more)),
        _line("total", whole, more),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _line(name: str, row: _Row, more: Sequence[str]) -> tuple[str, ...]:
    each = row.held / row.parameters if row.parameters else 0.0
    numbers = f"{row.parameters:,}", f"{row.trained:,}", f"{row.held:,}", f"{each:.1f}"
    texts = {"layers": _layers(row.layers), "factor": _range(row.factors)}
    return (name, *numbers, *[texts[column] for column in more])


def _layers(layers: list[int]) -> str:
    return ", ".join(str(count) for count in sorted(set(layers)))


def _range(factors: list[Any]) -> str:
    """The smallest and the largest of all factors, or the only one."""
    if any(factor is None for factor in factors):
        return "varies"
    every = [number for factor in factors for number in np.ravel(factor)]
    ends = [f"{end(every):.3g}" for end in (min, max)] if every else []
    return " .. ".join(dict.fromkeys(ends))


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = line
    cells = [first.ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    return "  ".join(cells).rstrip()
