"""The optimizers that are compiled, each beside the one it is built on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

import optaxtricks as ot

from .. import bench_compile, harness, masks
from .targets import placed

Make = Callable[[Any], optax.GradientTransformation]

SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "tiny": {"embedding": (256, 128), "kernel": (128, 256), "bias": (128,)},
    "matrix": {"kernel": (8192, 8192), "bias": (8192,)},
    "tree": harness.SIZES["full"],
    "stack": harness.stacked_shapes(layers=12, width=768, axis=0),
    "table": {"table": (131072, 512)},
    "many": {
        f"leaf_{i}": bench_compile.SHAPES[i % len(bench_compile.SHAPES)]
        for i in range(1000)
    },
}
"""`matrix`, `tree` and `table` have 67 million parameters, `many` a thousand leaves."""

BASES: dict[str, Make] = {
    "optax.sgd": lambda params: optax.sgd(1e-3),
    "optax.adam": lambda params: optax.adam(1e-3),
    "optax.adamw": lambda params: optax.adamw(1e-3),
    "optax.lion": lambda params: optax.lion(1e-4),
    "optax.MultiSteps(adamw)": lambda params: optax.MultiSteps(
        optax.adamw(1e-3), 4
    ).gradient_transformation(),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """An optimizer to compile.

    Attributes:
      make: from abstract parameters, the optimizer.
      base: the name in `BASES` of what its figures are divided by.
      size: the one of `SIZES` that it is for, where any other means nothing.
      lookups: rows of each matrix that a gradient has; None for a dense gradient.
    """

    make: Make
    base: str
    size: str | None = None
    lookups: int | None = None


def _is_matrix(path: str, leaf: Any) -> bool:
    return len(leaf.shape) > 1


def _is_square(path: str, leaf: Any) -> bool:
    return _is_matrix(path, leaf) and leaf.shape[0] <= leaf.shape[1]


def _mask(params: Any, kept: float, draw: Any = masks.entries) -> Any:
    return draw({path: leaf.shape for path, leaf in params.items()}, kept)


def _adamw() -> optax.GradientTransformationExtraArgs:
    return optax.adamw(1e-3)


def _lion() -> optax.GradientTransformationExtraArgs:
    return ot.lion(1e-4)


def _on_adamw(make: Callable[[Any], list[Any]]) -> Recipe:
    return Recipe(lambda params: optax.chain(*make(params)), "optax.adamw")


def _on_lion(make: Callable[[Any], list[Any]]) -> Recipe:
    return Recipe(lambda params: optax.chain(*make(params)), "optax.lion")


def _dropout(rate: float = 0.3, **options: Any) -> Any:
    return ot.gradient_dropout(rate, key=0, **options)


RECIPES: dict[str, Recipe] = {
    **{name: Recipe(make, name) for name, make in BASES.items()},
    "gradient_dropout, adamw": _on_adamw(lambda p: [_dropout(), _adamw()]),
    "gradient_dropout by row, adamw": _on_adamw(
        lambda p: [_dropout(granularity="row"), _adamw()]
    ),
    "gradient_dropout gaussian, adamw": _on_adamw(
        lambda p: [_dropout(distribution="gaussian"), _adamw()]
    ),
    "gradient_dropout, lion": _on_lion(lambda p: [_dropout(), _lion()]),
    "adamw, update_dropout": _on_adamw(
        lambda p: [_adamw(), ot.update_dropout(0.3, key=0)]
    ),
    "adamw, update_dropout by leaf": _on_adamw(
        lambda p: [_adamw(), ot.update_dropout(0.3, key=0, granularity="leaf")]
    ),
    "keep_entries, adamw": _on_adamw(
        lambda p: [ot.keep_entries(_mask(p, 0.2)), _adamw()]
    ),
    "child_tuning_d(adamw)": _on_adamw(
        lambda p: [ot.child_tuning_d(_adamw(), _mask(p, 0.2))]
    ),
    **{
        f"compact_entries(adamw), {kept:.1%}": _on_adamw(
            lambda p, kept=kept: [ot.compact_entries(_adamw(), _mask(p, kept))]
        )
        for kept in (0.2, 0.005)
    },
    "compact_entries(adamw), 20.0% in tiles": _on_adamw(
        lambda p: [ot.compact_entries(_adamw(), _mask(p, 0.2, masks.tiles))]
    ),
    "lion": _on_lion(lambda p: [_lion()]),
    "lion, bfloat16 momentum": _on_lion(
        lambda p: [ot.lion(1e-4, mu_dtype=jnp.bfloat16)]
    ),
    "lion, cautious": _on_lion(lambda p: [ot.lion(1e-4, cautious=True)]),
    "tiger": _on_lion(lambda p: [ot.tiger(1e-3)]),
    "tiger, plain": _on_lion(lambda p: [ot.tiger(1e-3, relative=False, shrink=None)]),
    "tiger, window of 4": Recipe(
        lambda p: ot.tiger(1e-3, accumulate_steps=4), "optax.MultiSteps(adamw)"
    ),
    "shrink_nonfinite(lion)": _on_lion(lambda p: [ot.shrink_nonfinite(_lion())]),
    "magma(lion)": _on_lion(lambda p: [ot.magma(_lion(), key=0)]),
    "magma(adamw)": _on_adamw(lambda p: [ot.magma(_adamw(), key=0)]),
    "mixed_sign": _on_lion(lambda p: [ot.mixed_sign(1e-4, embeddings=_is_square)]),
    "monitor_groups, adamw": _on_adamw(lambda p: [ot.monitor_groups("all"), _adamw()]),
    "adamw, monitor_groups": _on_adamw(lambda p: [_adamw(), ot.monitor_groups("all")]),
    "lion, scale_by_path": _on_lion(lambda p: [_lion(), ot.scale_by_path({"": 0.5})]),
    "lion, ema_params": _on_lion(lambda p: [_lion(), ot.ema_params(0.999)]),
    "lion, round_stochastically": _on_lion(
        lambda p: [_lion(), ot.round_stochastically(key=0)]
    ),
    "ladder(lion)": _on_lion(lambda p: [ot.ladder(_lion(), side=_is_square)]),
    "lazy_rows(lion)": _on_lion(lambda p: [ot.lazy_rows(_lion(), tables=_is_matrix)]),
    "lazy_rows(adam), looked-up rows": Recipe(
        lambda p: ot.lazy_rows(optax.adam(1e-3), tables=_is_matrix, moments="freeze"),
        "optax.adam",
        size="table",
        lookups=4096,
    ),
    "per_layer(tiger)": Recipe(
        lambda p: ot.per_layer(ot.tiger(1e-3), "^layers/"), "optax.lion", size="stack"
    ),
    "per_layer(gradient_dropout, adamw)": Recipe(
        lambda p: ot.per_layer(optax.chain(_dropout(), _adamw()), "^layers/"),
        "optax.adamw",
        size="stack",
    ),
}


def parameters(mesh: Any, size: str, dtype: Any) -> Any:
    """Abstract parameters of one of `SIZES`, divided over a mesh."""
    return placed(mesh, SIZES[size], dtype)


def gradients(recipe: Recipe, params: Any) -> Any:
    """What the recipe's update is given for them."""
    if recipe.lookups is None:
        return params
    return {path: _rows_of(leaf, recipe.lookups) for path, leaf in params.items()}


def _rows_of(leaf: Any, count: int) -> Any:
    """A RowSparse in place of a matrix; every device has all its rows."""
    if len(leaf.shape) < 2:
        return leaf
    count = min(count, leaf.shape[0])
    rows = jax.eval_shape(
        lambda values: ot.RowSparse(jnp.zeros(count, jnp.int32), values, leaf.shape[0]),
        jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
    )
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    put = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
    return jax.tree.map(put, rows)
