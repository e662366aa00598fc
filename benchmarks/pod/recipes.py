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

from .. import masks

# Leaf paths look like "encoder/layers/0/attention/query/kernel" and "head/bias"; those
# of a decoder like "layers/attention/query/kernel", with an axis for the layers.
TABLE = r"word/embedding$"
KERNELS = r"kernel$"
ADAPTER = r"^side/|/lora_[ab]$"
DECAYED = r"(kernel|embedding|lora_[ab])$"  # neither biases nor LayerNorm scales


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run hands to its recipe."""

    learning_rate: optax.Schedule
    seed: int
    mask: Any  # which entries of every leaf are trained, for recipes that choose some
    params: Any  # their shapes
    stacked: str | None  # the leaves with an axis for the layers, if there are any
    options: Mapping[str, float]


def decayed(params: Any) -> Any:
    """Which leaves weight decay acts on."""
    return ot.select(params, DECAYED)


def adamw(setup: Setup) -> optax.GradientTransformation:
    """AdamW."""
    decay = setup.options["weight_decay"]
    return optax.adamw(setup.learning_rate, weight_decay=decay, mask=decayed)


def lion(setup: Setup) -> optax.GradientTransformation:
    """Lion."""
    decay = setup.options["weight_decay"]
    return ot.lion(setup.learning_rate, weight_decay=decay, mask=decayed)


def dropout_lion(setup: Setup) -> optax.GradientTransformation:
    """Lion behind gradient dropout."""
    keep_rate = setup.options["keep_rate"]
    return optax.chain(ot.gradient_dropout(keep_rate, key=setup.seed), lion(setup))


def tiger(setup: Setup) -> optax.GradientTransformation:
    """Tiger, whose momentum accumulates gradients over a window; layer by layer."""
    tx = ot.tiger(
        setup.learning_rate,
        weight_decay=setup.options["weight_decay"],
        accumulate_steps=int(setup.options["accumulate_steps"]),
        embeddings=TABLE,
        shrink_to_one=r"scale$",
    )
    return tx if setup.stacked is None else ot.per_layer(tx, setup.stacked)


def bfloat16_lion(setup: Setup) -> optax.GradientTransformation:
    """Lion with parameters and momentum in bfloat16, rounded at random."""
    decay = setup.options["weight_decay"]
    rate, dtype = setup.learning_rate, jnp.bfloat16
    tx = ot.lion(rate, mu_dtype=dtype, weight_decay=decay, mask=decayed)
    return optax.chain(tx, ot.round_stochastically(key=setup.seed))


def lazy_lion(setup: Setup) -> optax.GradientTransformation:
    """Lion that leaves the rows of words alone which the batch does not hold."""
    return ot.lazy_rows(lion(setup), tables=TABLE)


def child_tuning_f(setup: Setup) -> optax.GradientTransformation:
    """AdamW behind gradient dropout."""
    return ot.child_tuning_f(adamw(setup), setup.options["keep_rate"], key=setup.seed)


def child_tuning_d(setup: Setup) -> optax.GradientTransformation:
    """Lion on a part of the entries alone."""
    return ot.child_tuning_d(lion(setup), setup.mask)


def compact(setup: Setup) -> optax.GradientTransformation:
    """AdamW on a part of the entries alone, with state for these alone."""
    mask = random_blocks(setup.params, setup.options["kept"])
    return ot.compact_entries(adamw(setup), mask)


def side(setup: Setup) -> optax.GradientTransformation:
    """AdamW on the adapter alone."""
    return ot.ladder(adamw(setup), side=ADAPTER)


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
    """A chain with what it trains.

    Attributes:
      build: makes it.
      learning_rate: its peak.
      options: those that `--set` may change.
      model: "full", or of a decoder one with an adapter: "lora", "ladder", or "cached"
        for a ladder on cached taps.
      param_dtype: of a decoder's parameters, but for those of an adapter.
    """

    build: Callable[[Setup], optax.GradientTransformation]
    learning_rate: float
    options: Mapping[str, float]
    model: str = "full"
    param_dtype: Any = jnp.float32

    @property
    def trained(self) -> str | None:
        """A pattern of the leaves that are differentiated; None for all."""
        return None if self.model == "full" else ADAPTER


RECIPES = {
    "dropout_lion": Recipe(dropout_lion, 1e-4, {"weight_decay": 0.1, "keep_rate": 0.3}),
    "adamw": Recipe(adamw, 3e-4, {"weight_decay": 0.1}),
    "lion": Recipe(lion, 1e-4, {"weight_decay": 0.1}),
    "tiger": Recipe(tiger, 2e-3, {"weight_decay": 0.01, "accumulate_steps": 4}),
    "lazy_lion": Recipe(lazy_lion, 1e-4, {"weight_decay": 0.1}),
    "child_tuning_f": Recipe(
        child_tuning_f, 8e-4, {"weight_decay": 0.01, "keep_rate": 0.3}
    ),
    "child_tuning_d": Recipe(
        child_tuning_d, 1e-4, {"weight_decay": 0.1, "keep_fraction": 0.3}
    ),
    "compact": Recipe(compact, 1e-3, {"weight_decay": 0.01, "kept": 0.005}),
    "bfloat16_lion": Recipe(
        bfloat16_lion, 1e-4, {"weight_decay": 0.1}, param_dtype=jnp.bfloat16
    ),
    **{
        model: Recipe(side, 1e-3, {"weight_decay": 0.0}, model, jnp.bfloat16)
        for model in ("lora", "ladder", "cached")
    },
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


def random_blocks(params: Any, kept: float) -> Any:
    """A mask of so many tiles of 8 x 128, the same in all layers of a stack.

    A matrix that is not made of tiles keeps single entries, a vector all. It is drawn
    on the host, as `compact_entries` needs it, in every process the same.
    """

    def mask(is_matrix: bool, leaf: Any) -> Any:
        if not is_matrix:
            return True
        shape = {"": (*[1] * (len(leaf.shape) - 2), *leaf.shape[-2:])}
        tiles = masks.tiles(shape, kept)[""]
        return masks.entries(shape, kept)[""] if tiles is True else tiles

    return jax.tree.map(mask, decayed(params), params)


def any_mask(params: Any, like: Any) -> Any:
    """A mask in name only, for parameters that are traced or stand for some.

    In a trace it has the shapes of the parameters and takes no memory. What asks for
    the layout of a state alone gets one that broadcasts.
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(like))
    shape = lambda leaf: leaf.shape if traced else (1,) * len(leaf.shape)
    ones = jnp.ones if traced else np.ones
    return jax.tree.map(lambda leaf: ones(shape(leaf), bool), params)
