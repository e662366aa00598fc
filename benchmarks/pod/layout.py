"""Where a model's arrays lie on a mesh with the axes "data" and "model".

Parameters are divided over both (`param_shardings`). In a step each layer gathers its
weights over "data", and the cotangent goes back as a sum that is scattered, both in
bfloat16: fully sharded data parallelism (Rajbhandari et al., 2020). Over
"model" a pair of kernels is split by columns, then by rows (Shoeybi et al., 2019), and
what is kept between layers is divided by length (Korthikanti et al., 2022).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optaxtricks as ot

from ..finetune.errors import InputError

AXES = ("data", "model")
Spec = tuple[str | None, ...]
WHOLE: Spec = ("data", None, None)
BY_LENGTH: Spec = ("data", "model", None)
BY_FEATURE: Spec = ("data", None, "model")
Rules = Mapping[str, Spec]
"""Of each pattern of leaf paths, the mesh axes of the last axes of these leaves."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Constraints on a mesh; without one there are none."""

    mesh: Mesh | None

    def place(self, x: jax.Array, *spec: str | None) -> jax.Array:
        """The same array, divided so."""
        if self.mesh is None:
            return x
        place = NamedSharding(self.mesh, PartitionSpec(*spec))
        return jax.lax.with_sharding_constraint(x, place)

    def whole(self, x: jax.Array) -> jax.Array:
        """States of all positions, as the kernels of a block take them in."""
        return _moved(self, WHOLE, BY_LENGTH, x)

    def by_length(self, x: jax.Array) -> jax.Array:
        """What a block gives, divided by length."""
        return _moved(self, BY_LENGTH, WHOLE, x)

    def divides(self, axis: str, size: int) -> bool:
        """Whether a mesh axis divides a size."""
        return self.mesh is None or size % self.mesh.shape[axis] == 0

    def gathers(self, *specs: Spec) -> Callable[..., Any]:
        """Flax's `promote_dtype`: to bfloat16, and weights to where they are used.

        They are cast before they travel: half the bytes do.
        """

        def promote(arrays: Sequence[Any], **_: Any) -> list[Any]:
            arrays = [x if x is None else x.astype(jnp.bfloat16) for x in arrays]
            weights = zip(arrays[1:], specs, strict=False)
            placed = [self.place(x, *spec) for x, spec in weights]
            return [arrays[0], *placed, *arrays[1 + len(placed) :]]

        return promote


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _moved(layout: Layout, there: Spec, back: Spec, x: jax.Array) -> jax.Array:
    """Places an array, and its cotangent where it came from.

    Left to itself, XLA may gather a kernel over all devices instead.
    """
    del back
    return layout.place(x, *there)


def _moved_forward(layout: Layout, there: Spec, back: Spec, x: jax.Array) -> Any:
    return _moved(layout, there, back, x), None


def _moved_backward(
    layout: Layout, there: Spec, back: Spec, saved: None, cotangent: jax.Array
) -> tuple[jax.Array]:
    del there, saved
    return (layout.place(cotangent, *back),)


_moved.defvjp(_moved_forward, _moved_backward)


def param_shardings(params: Any, rules: Rules, mesh: Mesh) -> Any:
    """The sharding of every parameter, by the first rule that matches its path.

    Raises:
      InputError: a mesh axis that does not divide an axis of a parameter.
    """
    labels = ot.label_by_path({p: p for p in rules}, default="")(params)

    def place(label: str, leaf: Any) -> NamedSharding:
        last = rules.get(label, ())
        spec = last and (None,) * (len(leaf.shape) - len(last)) + last
        for axis, name in enumerate(spec):
            if name is not None and leaf.shape[axis] % mesh.shape[name]:
                raise InputError(
                    f"--mesh: {name}={mesh.shape[name]} does not divide axis {axis} of "
                    f"a parameter of shape {leaf.shape}."
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(place, labels, params)
