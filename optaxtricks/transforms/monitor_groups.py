"""Watching the updates of groups of leaves without changing them."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._core import checks, update_checks
from .._core.build import transformation
from .._core.counts import fraction, with_known
from .._core.groups import Labels, group_labels
from .._core.layers import Stacked
from .._core.paths import leaves_with_paths, listing
from .._core.serialized import serialized_state
from .._core.total_passes import Leaves, totals_of
from .._core.totals import root
from ..selection.row_sparse import RowSparse

_READINGS = ("active_row_fraction", "max", "norm", "rms", "zero_fraction")


@serialized_state
class MonitorGroupsState(NamedTuple):
    """State of :func:`monitor_groups`.

    Attributes:
      readings: under the name of the monitor, for each label the float32 scalars
        ``norm``, ``rms``, ``max``, ``zero_fraction`` and ``active_row_fraction`` of
        the latest updates, vectors of one number a layer where its leaves are stacks;
        zeros before the first.
    """

    readings: dict[str, dict[str, dict[str, jax.Array]]] | jax.Array


def monitor_groups(
    labels: Labels, *, name: str = "updates", stacked: Stacked | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""Keeps a few numbers on the updates of each group of leaves; changes nothing.

    With :math:`G` the entries of all leaves of one label and :math:`n` their number:

    - ``norm``: :math:`\sqrt{\sum_{i \in G} |u_i|^2}`, and ``rms``:
      :math:`\mathrm{norm} / \sqrt n`;
    - ``max``: :math:`\max_{i \in G} |u_i|`;
    - ``zero_fraction``: the fraction of entries that are exactly zero;
    - ``active_row_fraction``: of all rows (indices of axis 0) of the leaves of rank 2
      or more, the fraction that is not all zero; 0 if there is no such leaf.

    With ``stacked`` a label whose leaves are stacks has each of these once for every
    layer, as if the layers were a list with a label each. A row is then an index of
    axis 0 of one layer.

    First in a chain it watches gradients, last complete updates, and the two side by
    side show rows that move without a gradient. :func:`metrics` reads the numbers out
    of any optimizer state. Unlike the state of ``optax.monitor``, this one has its
    final structure from ``init`` on, so it runs in ``jax.lax.scan``.

    First in a chain it reads the gradients where the optimizer does, in the same pass,
    on GPUs and TPUs; once more on a CPU, on a TPU where gradients and state are both
    narrower than float32, and for rows or vectors of more than :math:`2^{24}` entries.
    Behind an optimizer it needs an array of the updates, which a compiled step
    otherwise does without: XLA's CPU backend then writes one, of the parameters' size
    or half as much again, to temporary memory. Where that is too much, put the monitor
    first, or inside ``optax.masked``.

    Guarantees:
      - Updates pass bit for bit.
      - Sums are taken in float32 or wider, counts in integers: exact below
        :math:`2^{40}` entries a label and :math:`2^{32}` entries a row.
      - ``norm`` and ``rms`` do not over- or underflow on the way: they are right up to
        rounding for all normal float32 numbers, of up to :math:`2^{40}` entries a
        label. Subnormal ones may count as zero.
      - NaN shows in ``norm``, ``rms`` and ``max``; it counts as no zero.
      - Differentiable, as if it were not there; the readings are constants.
      - A stack is read where it lies, whatever its layer axis.
      - No communication but scalars, one a layer of stacks, and a few for each row
        whose entries are divided over devices: one on a TPU, five on a GPU, and one bit
        on a CPU, there for parts of equal length of at least 16 entries. Nothing waits
        for the device.

    Args:
      labels: a callable from a tree to a tree of strings, such as
        :func:`label_by_path` makes, or a tree of strings laid out like the parameters
        or a prefix of it (one string is the prefix of all); matched by path.
      name: what :func:`metrics` puts before the label; give every monitor of an
        optimizer its own. ``init`` cannot know of another; :func:`summary` and
        :func:`metrics` refuse two of one name that share a label.
      stacked: the leaves that are stacks of layers: a selector (see :func:`select`),
        for layers on axis 0, or pattern -> layer axis.

    Returns:
      A transformation whose state is a :class:`MonitorGroupsState`. A
      :class:`RowSparse` leaf counts as the table that it stands for.

    Raises:
      ValueError: ``name`` is empty; from ``init``, a leaf without a label, a label
        that stacks share with other leaves or with stacks of more or fewer layers,
        ``stacked`` inside :func:`per_layer`, and as ``stacked``; from ``update``, other
        labels or layers than ``init`` saw.
      TypeError: ``name`` or a label is no string; from ``init``, an integer leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> tx = ot.monitor_groups({"emb": "table", "w": "rest"})
      >>> grads = {"emb": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "w": jnp.ones(4)}
      >>> _, state = tx.update(grads, tx.init(grads))
      >>> table = state.readings["updates"]["table"]
      >>> float(table["rms"]), float(table["max"])
      (1.5, 3.0)
      >>> float(table["zero_fraction"]), float(table["active_row_fraction"])
      (0.75, 0.5)
      >>> tx = ot.monitor_groups("layers", stacked="^w$")
      >>> grads = {"w": jnp.array([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])}
      >>> _, state = tx.update(grads, tx.init(grads))
      >>> state.readings["updates"]["layers"]["norm"].tolist()
      [5.0, 10.0, 0.0]

    References:
      ``optax.monitor`` and ``optax.snapshot`` keep any one measure, of the whole tree.
      Su, 2023, kexue.fm archive 9736, on rows that move without a gradient.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}.")
    if not name:
        raise ValueError("name must not be empty.")

    def init(params: optax.Params) -> MonitorGroupsState:
        checks.inexact_leaves(params, by="monitor_groups")
        groups = _groups(params, labels, update_checks.stack_axes(params, stacked))
        if not groups:
            # optax.tree.map_params takes the state of a tree without leaves as a
            # prefix of every other state.
            return MonitorGroupsState(readings=jnp.zeros((), jnp.float32))
        zeros = lambda group: {
            reading: jnp.zeros(group.shape, jnp.float32) for reading in _READINGS
        }
        return MonitorGroupsState(
            {name: {label: zeros(group) for label, group in groups.items()}}
        )

    def update(
        updates: optax.Updates,
        state: MonitorGroupsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MonitorGroupsState]:
        del params, extra_args
        update_checks.state_of(MonitorGroupsState, state, by="monitor_groups")
        update_checks.inexact_updates(updates, by="monitor_groups")
        axes = update_checks.stack_axes(updates, stacked)
        groups = _groups(updates, labels, axes)
        _check_known(state, name, groups)
        if not groups:
            return updates, state
        readings = {label: _readings_of(group) for label, group in groups.items()}
        return updates, MonitorGroupsState(readings={name: readings})

    return transformation(init, update, one_leaf=True)


class _Group(NamedTuple):
    """The leaves of one label, their layer axes, and the shape of each reading."""

    leaves: list[Any]
    axes: list[int | None]
    shape: tuple[int, ...]


def _groups(tree: Any, labels: Labels, axes: list[int | None]) -> dict[str, _Group]:
    """The leaves of each label, in the order of labels; a RowSparse is one leaf."""
    members: dict[str, list[Any]] = {}
    found = zip(leaves_with_paths(tree), group_labels(tree, labels), axes, strict=True)
    for (path, leaf), label, axis in found:
        members.setdefault(label, []).append((path, leaf, axis))
    return {label: _group(label, members[label]) for label in sorted(members)}


def _group(label: str, members: list[tuple[str, Any, int | None]]) -> _Group:
    kinds: dict[tuple[int, ...], list[str]] = {}
    for path, leaf, axis in members:
        shape = () if axis is None else (leaf.shape[axis],)
        kinds.setdefault(shape, []).append(path)
    if len(kinds) > 1:
        each = [
            f"{f'{shape[0]} layers' if shape else 'no stack'}: {listing(paths, 5)}"
            for shape, paths in kinds.items()
        ]
        raise ValueError(
            f"the label {label!r} must have leaves of one number of layers, got "
            f"{'; '.join(each)}. Give each kind a label of its own."
        )
    _, leaves, axes = zip(*members, strict=True)
    return _Group(list(leaves), list(axes), next(iter(kinds)))


def _check_known(
    state: MonitorGroupsState, name: str, groups: dict[str, _Group]
) -> None:
    """Rejects other labels, and labels of other layers, than the state has."""
    held = state.readings
    known = held.get(name, {}) if isinstance(held, dict) else {}
    if sorted(known) != list(groups):
        raise ValueError(
            f"monitor_groups was initialised with the labels {listing(sorted(known))} "
            f"but got updates with {listing(groups)}."
        )
    for label, group in groups.items():
        if (shape := jnp.shape(known[label]["norm"])) != group.shape:
            raise ValueError(
                f"monitor_groups was initialised with readings of shape {shape} for "
                f"the label {label!r} but got updates with {group.shape}."
            )


def _readings_of(group: _Group) -> dict[str, jax.Array]:
    """The readings of a group, one for each layer where it has layers."""
    is_rows = lambda leaf: isinstance(leaf, RowSparse)
    whole = [leaf if is_rows(leaf) else jnp.asarray(leaf) for leaf in group.leaves]
    pairs = zip(whole, group.axes, strict=True)
    filled = [(leaf, axis) for leaf, axis in pairs if math.prod(leaf.shape)]
    if not filled:
        return dict.fromkeys(_READINGS, jnp.zeros(group.shape, jnp.float32))
    arrays, axes = zip(*filled, strict=True)
    readings = _readings(arrays, axes)
    if not group.shape:
        return readings
    return {name: _everywhere(values) for name, values in readings.items()}


# Jitted, since sums that are not read may be infinite, which `jax_debug_infs` reports.
@functools.partial(jax.jit, static_argnums=1)
def _readings(arrays: tuple[Any, ...], axes: tuple[int | None, ...]) -> dict[str, Any]:
    shapes = Leaves(arrays, axes).shapes()
    entries = sum(map(math.prod, shapes))
    rows = sum(shape[0] for shape in shapes if len(shape) > 1)
    held = Leaves([_held(leaf) for leaf in arrays], axes)
    total = totals_of(held)
    zeros = with_known(total.zeros, entries - sum(map(math.prod, held.shapes())))
    return {
        "active_row_fraction": fraction(total.active, rows),
        "max": total.largest,
        "norm": root(total),
        "rms": root(total, over=entries),
        "zero_fraction": fraction(zeros, entries),
    }


def _everywhere(values: jax.Array) -> jax.Array:
    """The same vector, whole on every device.

    Where layers are divided over devices, each has worked out those of its own. A
    compiler may leave a vector like that, but not a sum over what is divided.
    """
    own = jnp.eye(values.shape[0], dtype=bool)
    return jnp.where(own, values[:, None], np.float32(0)).sum(axis=0)


def _held(leaf: Any) -> jax.Array:
    """The array itself, or the rows that a RowSparse holds, of which padding is zero.

    More rows than the table has are possible: some are padding then.
    """
    if not isinstance(leaf, RowSparse):
        return leaf
    rows = leaf.summed()
    held = rows.indices < rows.num_rows
    shape = (-1,) + (1,) * (rows.values.ndim - 1)
    values = jnp.where(held.reshape(shape), rows.values, jnp.zeros((), rows.dtype))
    return values if values.size else jnp.zeros((1, *rows.shape[1:]), rows.dtype)
