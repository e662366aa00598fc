"""Where each part of an optimizer state belongs, given where the parameters are."""

from typing import Any

import jax
import optax
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from .._core.paths import leaves_with_paths
from .._core.state_parts import owners, transformation_of


def state_shardings(tx: Any, params: Any) -> Any:
    """The sharding of every leaf of an optimizer state, from the parameters' own.

    On a mesh of Auto axes ``jax.jit(tx.init)(params)`` puts a whole copy of the state
    on every device, as zeros depend on no parameter. With ``out_shardings`` each part
    is made in its place:

    - a part of a parameter's shape lies where the parameter does;
    - a part that ``init`` derives from a parameter lies where that derivation puts it
      on a mesh of Explicit axes: the bits of :func:`keep_entries`, the lists of
      :func:`compact_entries` and the rows and columns of Adafactor beside their
      parameter;
    - everything else, such as step counts, lies on every device of the mesh.

    Nothing is computed and no memory is taken.

    Args:
      tx: any Optax optimizer, ``optax.MultiSteps`` included.
      params: the parameters, or ``jax.ShapeDtypeStruct`` with ``sharding`` in their
        place, over a mesh of Auto or Explicit axes, or on a single device.

    Returns:
      A tree laid out like ``tx.init(params)`` with a ``jax.sharding.Sharding`` at each
      leaf: for ``out_shardings``, for ``jax.device_put``, and, set in the leaves of
      ``jax.eval_shape(tx.init, params)``, for Orbax to restore to.

    Raises:
      ValueError: ``params`` has no leaf, one without a sharding, or leaves on
        different devices.
      TypeError: ``tx`` is no Optax optimizer; a sharding of another kind.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> from jax.sharding import AxisType, NamedSharding, PartitionSpec
      >>> mesh = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,))
      >>> rows = NamedSharding(mesh, PartitionSpec("rows"))
      >>> params = {"w": jax.device_put(jnp.ones((8, 4)), rows)}
      >>> tx = optax.scale_by_adam()
      >>> places = ot.state_shardings(tx, params)
      >>> places.mu["w"].spec == rows.spec, places.count.spec == PartitionSpec()
      (True, True)
      >>> state = jax.jit(tx.init, out_shardings=places)(params)
      >>> state.mu["w"].sharding == rows
      True
    """
    tx = transformation_of(tx=tx)
    placed = {path: _sharding(path, leaf) for path, leaf in leaves_with_paths(params)}
    home = _home(placed)
    shapes = {path: leaf.shape for path, leaf in leaves_with_paths(params)}
    state = jax.eval_shape(tx.init, _like(params, lambda leaf: None))
    derived = _derived(tx, params, home, len(jax.tree.leaves(state)))
    leaves, layout = jax.tree.flatten(state)
    places = [
        placed[owner] if owner is not None and shapes[owner] == leaf.shape else place
        for leaf, owner, place in zip(
            leaves, owners(tx, state, params), derived, strict=True
        )
    ]
    return jax.tree.unflatten(layout, places)


def _sharding(path: str, leaf: Any) -> Sharding:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        raise ValueError(
            f"state_shardings needs to know where parameters are, but the leaf at "
            f"{path!r} has no sharding."
        )
    if not isinstance(sharding, NamedSharding | SingleDeviceSharding):
        raise TypeError(
            "state_shardings knows NamedSharding and SingleDeviceSharding, but the "
            f"leaf at {path!r} has a {type(sharding).__name__}."
        )
    return sharding


def _home(placed: dict[str, Sharding]) -> Sharding:
    """Where what belongs to no parameter goes: to all their devices."""
    if not placed:
        raise ValueError("state_shardings needs parameters, but there is no leaf.")
    first, one = next(iter(placed.items()))
    for path, other in placed.items():
        if other.device_set != one.device_set:
            raise ValueError(
                f"parameters must be on the same devices, but those at {first!r} and "
                f"{path!r} are not."
            )
    meshed = [s for s in placed.values() if isinstance(s, NamedSharding)]
    return NamedSharding(meshed[0].mesh, PartitionSpec()) if meshed else one


def _derived(
    tx: optax.GradientTransformation, params: Any, home: Sharding, count: int
) -> list[Sharding]:
    """Where `init` puts the parts of the state on a mesh of Explicit axes.

    There the sharding is a part of an array's type, so that tracing alone shows it.
    """
    everywhere = [home] * count
    if not isinstance(home, NamedSharding) or not isinstance(home.mesh, Mesh):
        return everywhere
    names = home.mesh.axis_names
    explicit = Mesh(
        home.mesh.devices, names, axis_types=(AxisType.Explicit,) * len(names)
    )

    def typed(leaf: Any) -> Sharding | None:
        # Two meshes over the same devices may differ in their axes.
        there = isinstance(leaf.sharding, NamedSharding)
        if not there or leaf.sharding.mesh.axis_names != names:
            return None
        return NamedSharding(explicit, leaf.sharding.spec)

    try:
        # Out of a mesh's context JAX 0.12 forgets the shardings of zeros.
        with jax.sharding.use_abstract_mesh(explicit.abstract_mesh):
            state = jax.eval_shape(tx.init, _like(params, typed))
    except Exception:  # an `init` that runs on no mesh of Explicit axes
        return everywhere
    specs = [leaf.sharding and leaf.sharding.spec for leaf in jax.tree.leaves(state)]
    return [NamedSharding(home.mesh, spec or PartitionSpec()) for spec in specs]


def _like(params: Any, sharding: Any) -> Any:
    """Abstract parameters with other shardings."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding(leaf)
        ),
        params,
    )
