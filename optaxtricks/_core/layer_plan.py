"""An optimizer shown one layer of every stack at a time.

Leaves that are no stacks, and what a state holds for the whole tree, such as step
counts, are the same for all layers and stay as they are. What belongs to a stack, or
comes to depend on one, has a layer axis.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from .layer_batching import Group, LayerBatching, Place, Value
from .layer_flow import OUTSIDE, LayerFlow
from .layers import Layer, one_layer_seen
from .paths import OneLeaf, flatten, leaves_with_paths
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
        self._inits: dict[tuple[Any, ...], Any] = {}
        leaves, self._layout = flatten(params)
        self._paths = [path for path, _ in leaves_with_paths(params)]
        groups, self._places = _grouped(leaves, axes)
        self._groups, self._layers = groups, LayerBatching(groups)
        self._numbers = [Place(group, 0) for group in range(len(groups))]
        one = [value.one() for value in map(Value, leaves, self._places)]
        numbers = [jax.ShapeDtypeStruct((), jnp.int32)] * len(groups)
        trace = jax.make_jaxpr(self._init_one, return_shape=True)
        self._first, state = trace(numbers, one)
        parts, self._state_layout = jax.tree.flatten(state)
        layouts = self._layout, self._state_layout, self._layout
        try:
            step = self._traced_update(layouts, [one, parts, one], {})
        except Exception:  # it cannot do without extra arguments
            step = None
        self._stacks = [None if at is None else at.group for at in self._places]
        flow = LayerFlow(self._paths, self._stacks, self._first, step)
        flow.check(leaves_with_paths(state))
        self._names = [path for path, _ in leaves_with_paths(state)]
        self._check_twins(one)
        numbers_of = {path: number for number, path in enumerate(self._paths)}
        belongs = owners(inner, state, jax.tree.unflatten(self._layout, one))
        homes = [numbers_of.get(owner) for owner in belongs]
        self._state: Places = [
            _place_of_part(part, group, None if home is None else self._places[home])
            for part, group, home in zip(parts, flow.groups(), homes, strict=True)
        ]
        self._shapes = [
            _with_layers(part.shape, at, groups)
            for part, at in zip(parts, self._state, strict=True)
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
            # In its place from the start, and never whole on one device. Leaves that
            # are not read still say which devices there are.
            run = self._init_at(tuple(self._shardings(leaves)))
        return jax.tree.unflatten(self._state_layout, run(leaves))

    def _init_at(self, places: tuple[Any, ...]) -> Any:
        """The compiled `init` whose results go to these places; kept, as a bound method
        alone would be compiled anew every time."""
        if places not in self._inits:
            self._inits[places] = jax.jit(
                self._init_all, out_shardings=list(places), keep_unused=True
            )
        return self._inits[places]

    def update(
        self, updates: Any, state: Any, params: Any, extra_args: dict[str, Any]
    ) -> tuple[Any, Any]:
        """`inner.update` of all layers. Extra arguments are the same for all."""
        trees = updates, state, params
        order = self._order_of(state)
        self._check_state(state, order)
        layouts = [jax.tree.structure(tree) for tree in trees]
        held = [self._state[i] for i in order]
        places = self._arrays_of(updates), held, self._arrays_of(params)
        lists = [
            list(map(Value, jax.tree.leaves(tree), where))
            for tree, where in zip(trees, places, strict=True)
        ]

        one = [[value.one() for value in row] for row in lists]
        step = self._traced_update(layouts, one, extra_args)
        self._check_step(step, one, leaves_with_paths(state), bool(extra_args))
        values = [value for row in lists for value in row]
        out = self._run(step, values, [*places[0], *held])
        count = len(places[0])
        return jax.tree.unflatten(layouts[0], out[:count]), jax.tree.unflatten(
            layouts[1], out[count:]
        )

    def _check_twins(self, one: list[Any]) -> None:
        """Rejects an `inner` that takes two layers of one stack together.

        Seen one at a time they cannot show it, so all leaves are seen twice; where
        `inner` knows the paths of its leaves, and so not those of twins, this is not
        found out.
        """
        twins = lambda leaves: tuple(
            jax.tree.unflatten(self._layout, half)
            for half in (leaves[: len(one)], leaves[len(one) :])
        )
        init = lambda numbers, leaves: self._inner.init(twins(leaves))
        update = lambda grads, parts, leaves: self._inner.update(
            twins(grads), jax.tree.unflatten(layout, parts), twins(leaves)
        )
        numbers = [jax.ShapeDtypeStruct((), jnp.int32)] * len(self._groups)
        try:
            trace = jax.make_jaxpr(init, return_shape=True)
            first, state = trace(numbers, [*one, *one])
            parts, layout = jax.tree.flatten(state)
            step = jax.make_jaxpr(update)([*one, *one], parts, [*one, *one])
        except Exception:  # of another tree than it is made for
            return
        names = [*self._paths, *(f"{path} of another layer" for path in self._paths)]
        LayerFlow(names, self._stacks * 2, first, step).check([])

    def _check_step(
        self, step: Any, lists: list[Any], state: Any, with_extra: bool
    ) -> None:
        """Rejects updates of other shapes, and what extra arguments lead `inner` to."""
        if len(step.out_avals) != len(lists[0]) + len(lists[1]):
            raise ValueError(
                f"inner changes the structure of its updates or of its state: it was "
                f"given {len(lists[0])} and {len(lists[1])} arrays, and gave "
                f"{len(step.out_avals)}."
            )
        for grad, out in zip(lists[0], step.out_avals, strict=False):
            if tuple(grad.shape) != tuple(out.shape):
                raise ValueError(
                    f"inner gives an update of shape {out.shape} for a tensor of shape "
                    f"{grad.shape}. Extra arguments reach it whole, not one layer at a "
                    "time."
                )
        count = len(self._paths)
        if with_extra and len(lists[0]) == len(lists[2]) == count:
            LayerFlow(self._paths, self._stacks, self._first, step).check(state)

    def _arrays_of(self, tree: Any) -> Places:
        """The place of every array; a leaf of several arrays may be no stack."""
        leaves, found = flatten(tree)[0], []
        for path, leaf, at in zip(self._paths, leaves, self._places, strict=False):
            if at is not None and isinstance(leaf, OneLeaf):
                raise TypeError(
                    f"the gradient at {path!r} is a {type(leaf).__name__}, which "
                    "cannot be a stack."
                )
            found += [at] * len(jax.tree.leaves(leaf))
        return found

    def _order_of(self, state: Any) -> list[int]:
        """The numbers of the parts of a state, which may be in other containers."""
        names = [path for path, _ in leaves_with_paths(state)]
        numbers = {path: i for i, path in enumerate(self._names)}
        if len(names) != len(numbers) or set(names) != set(numbers):
            return list(range(len(self._names)))
        return [numbers[path] for path in names]

    def _check_state(self, state: Any, order: list[int]) -> None:
        parts = leaves_with_paths(state)
        shapes = [np.shape(part) for _, part in parts]
        if len(shapes) != len(self._shapes):
            raise TypeError(
                f"per_layer needs a state of {len(self._shapes)} arrays, as its init "
                f"makes it of parameters with these leaves, got {type(state).__name__} "
                f"of {len(shapes)}; update takes (updates, state, params)."
            )
        for (path, _), have, i in zip(parts, shapes, order, strict=True):
            if have != (want := self._shapes[i]):
                raise ValueError(
                    f"per_layer got a state for other stacks: at {path!r} it has shape "
                    f"{have}, expected {want}."
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
        return [x.sharding if x is not None and x.committed else None for x in known]

    def _init_one(self, numbers: list[Any], leaves: list[Any]) -> Any:
        seen = {
            path: Layer(numbers[at.group], self._groups[at.group].size)
            for path, at in zip(self._paths, self._places, strict=True)
            if at is not None
        }
        with one_layer_seen(seen):
            return self._inner.init(jax.tree.unflatten(self._layout, leaves))

    def _traced_update(
        self, layouts: Sequence[Any], lists: Sequence[Any], extra_args: dict[str, Any]
    ) -> Any:
        """`inner.update` of one layer, for leaves of updates, state and parameters."""

        def update(*lists: list[Any]) -> Any:
            grads, state, params = map(jax.tree.unflatten, layouts, lists)
            return self._inner.update(grads, state, params, **extra_args)

        return jax.make_jaxpr(update)(*lists)


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
        if typed is not None and typed.spec[axis] is not None:
            typed = NamedSharding(typed.mesh, PartitionSpec(typed.spec[axis]))
        else:
            typed = None
        kind = leaf.shape[axis], typed
        if kind not in kinds:
            kinds.append(kind)
        places.append(Place(kinds.index(kind), axis))
    most = [
        max(at.axis for at in places if at is not None and at.group == group)
        for group in range(len(kinds))
    ]
    groups = [
        Group(size, axis, typed)
        for (size, typed), axis in zip(kinds, most, strict=True)
    ]
    return groups, places


def _with_layers(
    shape: tuple[int, ...], at: Place | None, groups: Sequence[Group]
) -> tuple[int, ...]:
    if at is None:
        return tuple(shape)
    return (*shape[: at.axis], groups[at.group].size, *shape[at.axis :])


def _place_of_part(part: Any, group: int | None, home: Place | None) -> Place | None:
    """Where a part of the state counts layers: if it can, where its stack does."""
    if home is not None:
        return Place(home.group, min(home.axis, part.ndim))
    return None if group is None else Place(group, 0)
