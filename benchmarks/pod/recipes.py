"""The chains that can be trained with, each an ordinary Optax chain to copy out.

To add one, write a function like those below and give it a line in RECIPES.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

# Leaf paths look like "encoder/layers/0/attention/query/kernel" and "head/bias".
TABLE = r"word/embedding$"
KERNELS = r"kernel$"
DECAYED = r"(kernel|embedding)$"  # neither biases nor LayerNorm scales


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run hands to its recipe."""

    learning_rate: optax.Schedule
    seed: int
    mask: Any  # which entries of every leaf are trained, for recipes that choose some
    options: Mapping[str, float]


def decayed(params: Any) -> Any:
    """Which leaves weight decay acts on."""
    return ot.select(params, DECAYED)


def lion(setup: Setup) -> optax.GradientTransformation:
    """Lion."""
    decay = setup.options["weight_decay"]
    return ot.lion(setup.learning_rate, weight_decay=decay, mask=decayed)


def dropout_lion(setup: Setup) -> optax.GradientTransformation:
    """Lion behind gradient dropout."""
    keep_rate = setup.options["keep_rate"]
    return optax.chain(ot.gradient_dropout(keep_rate, key=setup.seed), lion(setup))


def tiger(setup: Setup) -> optax.GradientTransformation:
    """Tiger, whose momentum accumulates gradients over a window."""
    return ot.tiger(
        setup.learning_rate,
        weight_decay=setup.options["weight_decay"],
        accumulate_steps=int(setup.options["accumulate_steps"]),
        embeddings=TABLE,
        shrink_to_one=r"scale$",
    )


def lazy_lion(setup: Setup) -> optax.GradientTransformation:
    """Lion that leaves the rows of words alone which the batch does not hold."""
    return ot.lazy_rows(lion(setup), tables=TABLE)


def child_tuning_f(setup: Setup) -> optax.GradientTransformation:
    """AdamW behind gradient dropout."""
    decay = setup.options["weight_decay"]
    adamw = optax.adamw(setup.learning_rate, weight_decay=decay, mask=decayed)
    return ot.child_tuning_f(adamw, setup.options["keep_rate"], key=setup.seed)


def child_tuning_d(setup: Setup) -> optax.GradientTransformation:
    """Lion on a part of the entries alone."""
    return ot.child_tuning_d(lion(setup), setup.mask)


def everything(setup: Setup) -> optax.GradientTransformation:
    """All techniques in one chain, to show that they go together and resume."""
    options = setup.options
    labels = {TABLE: "tables", KERNELS: "kernels"}
    by_label: dict[Hashable, optax.GradientTransformation] = {
        "tables": ot.lazy_rows(lion(setup), tables=TABLE),
        "kernels": ot.child_tuning_d(tiger(setup), setup.mask),
        "others": ot.magma(optax.adam(setup.learning_rate), key=setup.seed + 2),
    }
    parts = [
        ot.monitor_groups(ot.label_by_path(labels, default="others")),
        ot.gradient_dropout(options["keep_rate"], key=setup.seed),
        optax.partition(by_label, ot.label_by_path(labels, default="others")),
        ot.scale_by_path({r"^head/": 2.0}),
        ot.update_dropout(options["update_keep_rate"], key=setup.seed + 1),
        ot.ema_params(options["ema_decay"]),
    ]
    return optax.chain(*parts)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A chain with its peak rate and the options that `--set` may change."""

    build: Callable[[Setup], optax.GradientTransformation]
    learning_rate: float
    options: Mapping[str, float]


RECIPES = {
    "dropout_lion": Recipe(dropout_lion, 1e-4, {"weight_decay": 0.1, "keep_rate": 0.3}),
    "lion": Recipe(lion, 1e-4, {"weight_decay": 0.1}),
    "tiger": Recipe(tiger, 2e-3, {"weight_decay": 0.01, "accumulate_steps": 4}),
    "lazy_lion": Recipe(lazy_lion, 1e-4, {"weight_decay": 0.1}),
    "child_tuning_f": Recipe(
        child_tuning_f, 8e-4, {"weight_decay": 0.01, "keep_rate": 0.3}
    ),
    "child_tuning_d": Recipe(
        child_tuning_d, 1e-4, {"weight_decay": 0.1, "keep_fraction": 0.3}
    ),
    "everything": Recipe(
        everything,
        1e-3,
        {
            "weight_decay": 0.1,
            "keep_rate": 0.5,
            "keep_fraction": 0.3,
            "accumulate_steps": 3,
            "update_keep_rate": 0.8,
            "ema_decay": 0.9,
        },
    ),
}


def largest_entries(params: Any, keep_fraction: float) -> Any:
    """The mask of a recipe: of all entries the largest in size.

    A Fisher mask takes passes over data; what matters here is that a mask of entries
    is made on the devices, goes into the state and comes out of a checkpoint.
    """
    return ot.top_fraction_mask(jax.tree.map(jnp.abs, params), keep_fraction)


def all_entries(params: Any) -> Any:
    """A mask in name only, for updates: these read the one in the state."""
    return jax.tree.map(lambda leaf: np.broadcast_to(True, leaf.shape), params)
