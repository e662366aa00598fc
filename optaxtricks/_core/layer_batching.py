"""A program for one layer, run for all layers of a stack where they lie.

`jax.vmap` moves the layer axis to the front wherever an array of a layer meets a number
of that layer, or an array that all layers share; where layers lie on another axis, XLA
then writes transposed copies. Nor may it map over a mesh axis that divides anything
else. So a traced program is run operation by operation: what no layer enters, as it is;
the rest mapped by `jax.vmap`, with all operands brought to one layer axis.
"""

import functools
import operator
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from . import programs
from .data_flow import called, sources
from .shardings import typed_sharding

# Operations on arrays of one shape, or on arrays and scalars.
_TAKES_SCALARS = {
    *("add", "add_any", "and", "atan2", "clamp", "complex", "div", "eq", "ge", "gt"),
    *("le", "lt", "max", "min", "mul", "ne", "nextafter", "or", "pow", "rem"),
    *("select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical"),
    *("sub", "xor"),
}


# Traced functions that are kept.
_KEPT = 1000


class Place(NamedTuple):
    """Where an array counts layers: those of which group of stacks, on which axis."""

    group: int
    axis: int


class Group(NamedTuple):
    """Stacks of one number of layers, divided alike over a mesh of Explicit axes.

    Attributes:
      size: the number of layers.
      axis: the layer axis of most arrays.
      sharding: of an array of one number a layer; None if not over Explicit axes.
    """

    size: int
    axis: int
    sharding: NamedSharding | None

    def numbers(self) -> jax.Array:
        """The numbers of the layers."""
        return jax.lax.broadcasted_iota(
            jnp.int32, (self.size,), 0, out_sharding=self.sharding
        )


class Value(NamedTuple):
    """An array, and where it counts layers; None if all layers share it."""

    array: Any
    at: Place | None = None

    def one(self) -> Any:
        """The type of the array of one layer, for tracing."""
        # A jax.ShapeDtypeStruct would not say how it varies inside of jax.shard_map.
        kind: Any = jax.typeof(self.array)
        axis = None if self.at is None else self.at.axis
        without = lambda row: tuple(x for i, x in enumerate(row) if i != axis)
        spec = PartitionSpec(*without(kind.sharding.spec))
        return kind.update(
            shape=without(kind.shape), sharding=NamedSharding(kind.sharding.mesh, spec)
        )


class LayerBatching:
    """Runs traced programs for every layer of every group at once."""

    def __init__(self, groups: Sequence[Group]):
        self._groups = groups
        # By the identity of traced functions, which JAX keeps from trace to trace.
        self._calls: dict[Any, tuple[Callable[..., Any], list[Place | None]]] = {}

    def run(
        self, closed: "programs.ClosedJaxpr", values: Sequence[Value]
    ) -> list[Value]:
        """The results of a program for one layer, from arguments of all layers.

        Raises:
          ValueError: numbers of different groups meet.
        """
        jaxpr = closed.jaxpr
        known = dict(zip(jaxpr.constvars, map(Value, closed.consts), strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))
        read = lambda atom: (
            Value(atom.val) if isinstance(atom, programs.Literal) else known[atom]
        )
        for equation in jaxpr.eqns:
            operands = [read(atom) for atom in equation.invars]
            results = self._results(jaxpr, equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def moved(self, value: Value, at: Place) -> jax.Array:
        """The array, with its layers counted at a place; copies if it is shared."""
        if value.at is None:
            return self._spread(jnp.asarray(value.array), at)
        if value.at == at:
            return value.array
        return jnp.moveaxis(value.array, value.at.axis, at.axis)

    def _spread(self, array: jax.Array, at: Place) -> jax.Array:
        group, typed = self._groups[at.group], typed_sharding(array)
        shape = (*array.shape[: at.axis], group.size, *array.shape[at.axis :])
        sharding = typed or group.sharding
        if sharding is not None:
            spec: list[Any] = [None] * array.ndim if typed is None else [*typed.spec]
            spec.insert(at.axis, group.sharding and group.sharding.spec[0])
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
        others = [axis for axis in range(len(shape)) if axis != at.axis]
        return jax.lax.broadcast_in_dim(array, shape, others, out_sharding=sharding)

    def _results(
        self, jaxpr: "programs.Jaxpr", equation: Any, operands: list[Value]
    ) -> list[Value]:
        groups = {value.at.group for value in operands if value.at is not None}
        name, params = equation.primitive.name, equation.params
        if groups and name in ("jit", "pjit") and not _has_shardings(params):
            return self._call(equation, operands)
        if groups and name == "cond" and operands[0].at is None:
            return self._branch(equation, operands)
        if len(groups) == 1:
            (group,) = groups
            if name == "broadcast_in_dim" and params["sharding"] is None:
                return [self._broadcast(params, operands[0])]
            if _is_elementwise(equation):
                operands = self._aligned(equation, operands, group)
        return self._mapped(_alone(jaxpr, equation), equation, operands, groups)

    def _mapped(
        self,
        alone: "programs.ClosedJaxpr",
        equation: Any,
        operands: list[Value],
        groups: Collection[int],
    ) -> list[Value]:
        """One operation, by `jax.vmap` over the layers of each group."""
        given = list(_by_variable(equation, operands).values())
        marks = [0 if value.at is None else 1 << value.at.group for value in given]
        made = [
            self._place(variable, mark)
            for variable, mark in zip(
                equation.outvars, sources(alone, marks), strict=True
            )
        ]
        run = programs.jaxpr_as_fun(alone)
        for group in groups:
            axis = lambda at, group=group: (
                at.axis if at is not None and at.group == group else None
            )
            run = jax.vmap(
                run,
                in_axes=tuple(axis(value.at) for value in given),
                out_axes=[axis(at) for at in made],
                axis_size=self._groups[group].size,
            )
        return list(map(Value, run(*[value.array for value in given]), made))

    def _place(self, variable: Any, marks: int) -> Place | None:
        """Where the value of a variable counts layers, given the groups it is of."""
        if not marks:
            return None
        group = marks.bit_length() - 1
        if marks != 1 << group:
            raise ValueError("numbers of stacks of different lengths meet.")
        return Place(group, self._axis(group, variable))

    def _aligned(self, equation: Any, operands: list[Value], group: int) -> list[Value]:
        """Operands of an element-wise operation with one layer axis and full shapes."""
        (result,) = equation.outvars
        full = [atom.aval.shape == result.aval.shape for atom in equation.invars]
        places = [value.at for value, f in zip(operands, full, strict=True) if f]
        usual = Place(group, self._axis(group, result))
        at = next((place for place in places if place is not None), usual)
        operands = [
            Value(self.moved(value, at), at) if f else value
            for value, f in zip(operands, full, strict=True)
        ]
        like = operands[full.index(True)].array
        spread = lambda number: jax.lax.broadcast_in_dim(
            number, like.shape, [at.axis], out_sharding=typed_sharding(like)
        )
        return [
            value if value.at is None or f else Value(spread(value.array), at)
            for value, f in zip(operands, full, strict=True)
        ]

    def _broadcast(self, params: dict[str, Any], value: Value) -> Value:
        """`broadcast_in_dim` that puts layers where most arrays have them."""
        assert value.at is not None
        group, shape = value.at.group, list(params["shape"])
        at = Place(group, min(self._groups[group].axis, len(shape)))
        shape.insert(at.axis, self._groups[group].size)
        dims = [dim + (dim >= at.axis) for dim in params["broadcast_dimensions"]]
        among = sum(dim < at.axis for dim in dims)
        array = jnp.moveaxis(value.array, value.at.axis, among)
        dims.insert(among, at.axis)
        return Value(jax.lax.broadcast_in_dim(array, shape, dims), at)

    def _call(self, equation: Any, operands: list[Value]) -> list[Value]:
        """A jitted function: traced once for all calls that are alike."""
        inner = called(equation.params)
        assert inner is not None
        places = tuple(value.at for value in operands)
        if len(self._calls) > _KEPT:  # an eager loop may trace its functions anew
            self._calls.clear()
        if (inner.jaxpr, places) not in self._calls:
            made: list[Place | None] = []

            def body(*arrays: Any) -> list[Any]:
                results = self.run(inner, list(map(Value, arrays, places)))
                made[:] = [value.at for value in results]
                return [value.array for value in results]

            body.__name__ = equation.params["name"]
            self._calls[inner.jaxpr, places] = jax.jit(body), made
        run, made = self._calls[inner.jaxpr, places]
        arrays = run(*[value.array for value in operands])
        return list(map(Value, arrays, made))

    def _branch(self, equation: Any, operands: list[Value]) -> list[Value]:
        """A branch that is the same for all layers, run as the program around it."""
        index, *given = operands
        branches = equation.params["branches"]
        marks = [0 if value.at is None else 1 << value.at.group for value in given]
        flows = zip(*[sources(branch, marks) for branch in branches], strict=True)
        made = [
            self._place(variable, functools.reduce(operator.or_, flow))
            for variable, flow in zip(equation.outvars, flows, strict=True)
        ]

        def body(branch: "programs.ClosedJaxpr", *arrays: Any) -> list[Any]:
            values = [
                Value(array, value.at)
                for array, value in zip(arrays, given, strict=True)
            ]
            return [
                value.array if at is None else self.moved(value, at)
                for value, at in zip(self.run(branch, values), made, strict=True)
            ]

        bodies = [functools.partial(body, branch) for branch in branches]
        arrays = jax.lax.switch(index.array, bodies, *[x.array for x in given])
        return list(map(Value, arrays, made))

    def _axis(self, group: int, variable: Any) -> int:
        return min(self._groups[group].axis, len(variable.aval.shape))


def _alone(jaxpr: "programs.Jaxpr", equation: Any) -> "programs.ClosedJaxpr":
    """A program of one operation."""
    alone = jaxpr.replace(
        constvars=[],
        invars=list(_by_variable(equation, equation.invars)),
        outvars=equation.outvars,
        eqns=[equation],
        effects=equation.effects,
    )
    return programs.ClosedJaxpr(alone, ())


def _by_variable(equation: Any, operands: Sequence[Any]) -> dict[Any, Any]:
    """Operands that are no literals, each once."""
    pairs = zip(equation.invars, operands, strict=True)
    return {atom: x for atom, x in pairs if not isinstance(atom, programs.Literal)}


def _is_elementwise(equation: Any) -> bool:
    """Whether operands may be given for all layers with no more work than for one."""
    if len(equation.outvars) != 1 or equation.primitive.name == "dot_general":
        return False
    shape = equation.outvars[0].aval.shape
    shapes = {atom.aval.shape for atom in equation.invars}
    scalars = equation.primitive.name in _TAKES_SCALARS
    return shapes == {shape} or (scalars and shapes == {shape, ()})


def _has_shardings(params: dict[str, Any]) -> bool:
    given = (*params["in_shardings"], *params["out_shardings"])
    return any(isinstance(sharding, Sharding) for sharding in given)
