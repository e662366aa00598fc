"""An optimizer shown one layer of every stack at a time.

Leaves that are no stacks, and what a state holds for the whole tree, such as step
counts, are the same for all layers and stay as they are. What belongs to a stack, or
comes to depend on one, has a layer axis.
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .layer_batching import Group, LayerBatching, Place, Value
from .layer_flow import OUTSIDE, LayerFlow
from .layers import numbered
from .paths import flatten, leaves_with_paths
from .shardings import typed_sharding
from .state_parts import owners

Places = list[Place | None]


class LayerPlan:
    """Which arrays of an optimizer's parameters and state count layers, and where.

    Args:
      inner: what is to see one layer at a time.
      params: arrays.
      axes: for each leaf its layer axis, or None. A stack without layers is none.

    Raises:
      ValueError: `inner` means another thing layer by layer; see `LayerFlow`.
    """

    def __init__(
        self,
        inner: optax.GradientTransformationExtraArgs,
        params: Any,
        axes: Sequence[int | None],
    ):
        self._inner = inner
        leaves, self._layout = flatten(params)
        self._paths = [path for path, _ in leaves_with_paths(params)]
        groups, self._places = _grouped(leaves, axes)
        self._layers = LayerBatching(groups)
        self._numbers = [Place(group, 0) for group in range(len(groups))]
        one = [value.one() for value in map(Value, leaves, self._places)]
        numbers = map(Value, [group.numbers() for group in groups], self._numbers)
        self._first, state = jax.make_jaxpr(self._init_one, return_shape=True)(
            [number.one() for number in numbers], one
        )
        self._groups = groups
        parts, self._state_layout = jax.tree.flatten(state)
        flow = LayerFlow(
            self._paths,
            [None if at is None else at.group for at in self._places],
            self._first,
            self._step(one, parts),
        )
        flow.check(leaves_with_paths(state))
        numbered_ = {path: number for number, path in enumerate(self._paths)}
        belongs = owners(inner, state, jax.tree.unflatten(self._layout, one))
        homes = [numbered_.get(owner) for owner in belongs]
        self._state: Places = [
            _place_of_part(part, group, None if home is None else self._places[home])
            for part, group, home in zip(parts, flow.groups(), homes, strict=True)
        ]
        # For each part that is laid out as a leaf is, the leaf's number.
        self._beside = [
            home if home is not None and part.shape == one[home].shape else None
            for part, home in zip(parts, homes, strict=True)
        ]

    def init(self, params: Any) -> Any:
        """`inner.init` of all layers."""
        leaves = flatten(params)[0]
        run = self._init_all
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            # In its place from the start, and never whole on one device.
            run = jax.jit(run, out_shardings=self._shardings(leaves))
        return jax.tree.unflatten(self._state_layout, run(leaves))

    def update(
        self, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]
    ) -> tuple[Any, Any]:
        """`inner.update` of all layers. Extra arguments are the same for all."""
        (grads, layout), (parts, state_layout) = flatten(updates), flatten(state)
        leaves, params_layout = flatten(params)
        known = self._places if leaves else []
        lists = [
            list(map(Value, grads, self._places)),
            list(map(Value, parts, self._state)),
            list(map(Value, leaves, known)),
        ]

        def update(grads: list[Any], parts: list[Any], leaves: list[Any]) -> Any:
            return self._inner.update(
                jax.tree.unflatten(layout, grads),
                jax.tree.unflatten(state_layout, parts),
                jax.tree.unflatten(params_layout, leaves),
                **extra_args,
            )

        step = jax.make_jaxpr(update)(*[[v.one() for v in row] for row in lists])
        values = [value for row in lists for value in row]
        out = self._run(step, values, [*self._places, *self._state])
        count = len(self._places)
        return jax.tree.unflatten(layout, out[:count]), jax.tree.unflatten(
            state_layout, out[count:]
        )

    def _run(self, program: Any, values: list[Value], made: Places) -> list[Any]:
        found = self._layers.run(program, values)
        if any(value.at and not at for value, at in zip(found, made, strict=True)):
            raise ValueError(
                f"inner lets a layer enter into what all layers share. {OUTSIDE}"
            )
        return [
            value.array if at is None else self._layers.moved(value, at)
            for value, at in zip(found, made, strict=True)
        ]

    def _init_all(self, leaves: list[Any]) -> list[Any]:
        numbers = [group.numbers() for group in self._groups]
        values = [
            *map(Value, numbers, self._numbers),
            *map(Value, leaves, self._places),
        ]
        return self._run(self._first, values, self._state)

    def _shardings(self, leaves: list[Any]) -> list[Any]:
        """Where the parts of the state belong, so far as their parameters say it."""
        known = [None if home is None else leaves[home] for home in self._beside]
        committed = lambda leaf: leaf is not None and leaf.committed
        return [leaf.sharding if committed(leaf) else None for leaf in known]

    def _init_one(self, numbers: list[Any], leaves: list[Any]) -> Any:
        stacked = zip(self._paths, self._places, strict=True)
        with numbered({path: numbers[at.group] for path, at in stacked if at}):
            return self._inner.init(jax.tree.unflatten(self._layout, leaves))

    def _step(self, one: list[Any], parts: list[Any]) -> Any:
        """The traced update of one layer, if it needs no extra arguments."""

        def update(grads: list[Any], parts: list[Any], leaves: list[Any]) -> Any:
            return self._inner.update(
                jax.tree.unflatten(self._layout, grads),
                jax.tree.unflatten(self._state_layout, parts),
                jax.tree.unflatten(self._layout, leaves),
            )

        try:
            return jax.make_jaxpr(update)(one, parts, one)
        except Exception:
            return None


def _grouped(
    leaves: Sequence[Any], axes: Sequence[int | None]
) -> tuple[list[Group], Places]:
    """Groups of stacks, and the place of each leaf."""
    kinds: list[Any] = []
    places: Places = []
    for leaf, axis in zip(leaves, axes, strict=True):
        if axis is None or leaf.shape[axis] == 0:
            places.append(None)
            continue
        typed = typed_sharding(leaf)
        if typed is not None:
            typed = NamedSharding(typed.mesh, PartitionSpec(typed.spec[axis]))
        kind = leaf.shape[axis], typed
        if kind not in kinds:
            kinds.append(kind)
        places.append(Place(kinds.index(kind), axis))
    most = [max(at.axis for at in places if at and at.group == i) for i in range(len(kinds))]
    return [Group(size, axis, typed) for (size, typed), axis in zip(kinds, most)], places


def _place_of_part(part: Any, group: int | None, home: Place | None) -> Place | None:
    """Where a part of the state counts layers: if it can, where its stack does."""
    if home is not None:
        return Place(home.group, min(home.axis, part.ndim))
    return None if group is None else Place(group, 0)
