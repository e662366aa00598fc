"""The one home of small parameter trees, gradients for them, and comparisons."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

STEPS = 3


def values(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
    """Numbers of both signs, none of them zero, with every bit in use."""
    rng = np.random.default_rng([seed, *shape])
    size = [rng.uniform(0.1, 2.0, shape) for _ in range(2)]
    parts = [rng.choice([-1.0, 1.0], shape) * part for part in size]
    whole = parts[0] + 1j * parts[1] if jnp.issubdtype(dtype, complex) else parts[0]
    return jnp.asarray(np.asarray(whole).astype(dtype))


def small_tree(dtype: Any = jnp.float32) -> Any:
    """A table, a matrix, a vector and a scalar; axes split over eight devices."""
    shapes = {"emb": (16, 8), "layer": {"b": (16,), "w": (8, 16)}, "scale": ()}
    return jax.tree.map(
        lambda shape: values(shape, dtype, seed=0),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def gradients(params: Any, seed: int = 1) -> Any:
    """A tree of other numbers laid out like `params`."""
    return jax.tree.map(lambda leaf: values(leaf.shape, leaf.dtype, seed), params)


def entry_mask(params: Any, seed: int = 5) -> Any:
    """A tree of bool arrays laid out like `params`: of each leaf the first entry and
    some others at random."""

    def some(leaf: Any) -> jax.Array:
        rng = np.random.default_rng([seed, *leaf.shape])
        mask = np.asarray(rng.random(leaf.shape, np.float32) < 0.5)
        mask.reshape(-1)[:1] = True
        return jnp.asarray(mask)

    return jax.tree.map(some, params)


def row_mask(params: Any, seed: int = 6) -> Any:
    """A tree of bool arrays that keep whole rows of `params`: of each leaf the first
    and some others at random. A leaf without rows has a mask of its shape."""
    first = lambda shape: (*shape[:1], *[1] * len(shape[1:]))
    kind = lambda leaf: jax.ShapeDtypeStruct(first(leaf.shape), bool)
    return entry_mask(jax.tree.map(kind, params), seed)


class Pair(NamedTuple):
    """A NamedTuple node."""

    b: Any
    w: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PairNode:
    """A dataclass node, as Equinox-style libraries make them."""

    b: Any
    w: Any


class LinenNet(nn.Module):
    """One dense layer and a scale, in Linen."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, ())
        return nn.Dense(4, name="layer")(x) * scale


class NnxNet(nnx.Module):
    """The same network in NNX."""

    def __init__(self) -> None:
        self.layer = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x) * self.scale[...]


def linen_params() -> Any:
    """Parameters of `LinenNet`: every leaf has a path that `NnxNet` has too."""
    return LinenNet().init(jax.random.key(0), jnp.ones((1, 6)))["params"]


def inputs_and_targets() -> tuple[jax.Array, jax.Array]:
    """A batch for `LinenNet` and `NnxNet`."""
    return values((5, 6), jnp.float32, 7), values((5, 4), jnp.float32, 8)


def squared_error(predicted: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean squared difference."""
    return jnp.mean((predicted - wanted) ** 2)


# The same two leaves in every container, at the paths layer/b and layer/w.
CONTAINERS: dict[str, Callable[[Any, Any], Any]] = {
    "dict": lambda b, w: {"layer": {"b": b, "w": w}},
    "frozen_dict": lambda b, w: flax.core.freeze({"layer": {"b": b, "w": w}}),
    "named_tuple": lambda b, w: {"layer": Pair(b, w)},
    "dataclass": lambda b, w: {"layer": PairNode(b, w)},
    "nnx_arrays": lambda b, w: nnx.State({"layer": {"b": b, "w": w}}),
    "nnx_variables": lambda b, w: nnx.State(
        {"layer": {"b": nnx.Param(b), "w": nnx.Param(w)}}
    ),
}


def applied(params: Any, updates: Any) -> Any:
    """`optax.apply_updates`, whose result type says too little for a test."""
    return optax.apply_updates(params, updates)


def temp_bytes(compiled: Any) -> int:
    """Temporary memory of a compiled function."""
    return compiled.memory_analysis().temp_size_in_bytes


def temp_bytes_of_step(tx: Any, params: Any, grads: Any) -> int:
    """Temporary memory of a compiled step that may write over what it reads."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return applied(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return temp_bytes(jitted.lower(params, tx.init(params), grads).compile())


def version(package: Any) -> tuple[int, ...]:
    """Its numbers, for what an older one cannot do."""
    return tuple(map(int, package.__version__.split(".")[:3]))


def layout(tree: Any) -> Any:
    """Structure, shapes, dtypes and weak types."""
    kinds = [(x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, _leaves(tree))]
    return jax.tree.structure(tree), kinds


def assert_same(got: Any, want: Any, *, ulps: int = 0) -> None:
    """Same structure and dtypes, and numbers equal to the bit or within `ulps`."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert_same_leaves(got, want, ulps=ulps)


def assert_same_leaves(got: Any, want: Any, *, ulps: int = 0) -> None:
    """As `assert_same`, for trees of different containers."""
    pairs = zip(jax.tree.leaves_with_path(got), _leaves(want), strict=True)
    for (path, left), right in pairs:
        a, b = np.asarray(left), np.asarray(right)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), jax.tree_util.keystr(path)
        if ulps and jnp.issubdtype(a.dtype, jnp.inexact):
            wide = np.complex128 if jnp.iscomplexobj(a) else np.float64
            room = ulps * float(jnp.finfo(a.dtype).eps)
            a, b = a.astype(wide), b.astype(wide)
            # A sum of terms that cancel is as far off as its terms are.
            floor = room * float(np.abs(b).max(initial=0.0))
            np.testing.assert_allclose(a, b, rtol=room, atol=floor)
        else:
            same = a.tobytes() == b.tobytes()
            assert same, f"{jax.tree_util.keystr(path)}: {a} is not {b}"


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree)


def pure(tree: Any) -> Any:
    """The tree with arrays in place of Flax Variables, as `nnx.Optimizer` makes it."""
    is_variable = lambda node: isinstance(node, nnx.Variable)
    value = lambda node: _value(node) if is_variable(node) else node
    return jax.tree.map(value, tree, is_leaf=is_variable)


def _value(variable: Any) -> Any:
    # `optax.partition` puts a MaskedNode, which has no leaf, into a Variable.
    leaves = jax.tree.leaves(variable)
    return leaves[0] if leaves else optax.MaskedNode()
