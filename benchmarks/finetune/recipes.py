"""The recipes under comparison, each an ordinary Optax chain to copy out.

To add one, write a function like those below and give it a line in RECIPES.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

import optaxtricks as ot

from .adaptation import AdapterClassifier, LoRAClassifier
from .encoder import Classifier
from .side_network import LadderClassifier, pruned_side

CLIP_NORM = 1.0
WEIGHT_DECAY = 0.01
KEEP_FRACTION = 0.3  # Child-Tuning, both variants, and update dropout
FISH_FRACTION = 0.005

# Leaf paths look like "encoder/layers/0/attention/query/kernel" and "head/bias".
LAYERS = r"^encoder/layers/"
ENCODER = r"^encoder/"
HEAD = r"^head/"
LORA = r"/lora_[ab]/|^head/"
BIASES = r"bias$|^head/"
ADAPTERS = r"_adapter/|norm/|^head/"  # LayerNorms too, as in the paper
SIDE = r"^(side|head)/"
DECAYED = r"(kernel|embedding)$"  # neither biases nor LayerNorm scales


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run hands to its recipe."""

    learning_rate: optax.ScalarOrSchedule
    key: jax.Array
    mask: Any = None  # only for recipes with a `mask` rule


def decayed(params: Any) -> Any:
    """Which leaves weight decay acts on."""
    return ot.select(params, DECAYED)


def adamw(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The optimizer that all recipes share."""
    return optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY, mask=decayed)


def full(setup: Setup) -> optax.GradientTransformation:
    """Full fine-tuning."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        adamw(setup.learning_rate),
    )


def tune(setup: Setup, where: str) -> optax.GradientTransformation:
    """AdamW on some leaves; the others have neither gradient nor state."""
    chain = optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        adamw(setup.learning_rate),
    )
    return ot.ladder(chain, side=where)


def head(setup: Setup) -> optax.GradientTransformation:
    """The classifier alone, on a frozen encoder."""
    return tune(setup, HEAD)


def bitfit(setup: Setup) -> optax.GradientTransformation:
    """BitFit: every bias, and the head."""
    return tune(setup, BIASES)


def lora(setup: Setup) -> optax.GradientTransformation:
    """LoRA: low-rank additions to the query and value matrices, and the head."""
    return tune(setup, LORA)


def adapters(setup: Setup) -> optax.GradientTransformation:
    """Adapters: two bottlenecks a layer, every LayerNorm, and the head."""
    return tune(setup, ADAPTERS)


def ladder(setup: Setup) -> optax.GradientTransformation:
    """Ladder side-tuning: a side network, and the head."""
    return tune(setup, SIDE)


def child_tuning_d(setup: Setup) -> optax.GradientTransformation:
    """Child-Tuning-D: layer entries of highest Fisher information; the rest dense."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        ot.child_tuning_d(adamw(setup.learning_rate), setup.mask),
    )


def child_tuning_f(setup: Setup) -> optax.GradientTransformation:
    """Child-Tuning-F: a fresh random part of the gradient each step."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        ot.child_tuning_f(adamw(setup.learning_rate), KEEP_FRACTION, key=setup.key),
    )


def update_dropout(setup: Setup) -> optax.GradientTransformation:
    """A fresh random part of the finished update each step."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        adamw(setup.learning_rate),
        ot.update_dropout(KEEP_FRACTION, key=setup.key),
    )


def fish(setup: Setup) -> optax.GradientTransformation:
    """FISH mask: few encoder entries and the head, with state for those alone."""
    return optax.chain(
        optax.clip_by_global_norm(CLIP_NORM),
        ot.compact_entries(adamw(setup.learning_rate), setup.mask),
    )


def lion(setup: Setup) -> optax.GradientTransformation:
    """Lion, which takes ten times AdamW's decay at a tenth of its rate."""
    return ot.lion(setup.learning_rate, weight_decay=10 * WEIGHT_DECAY, mask=decayed)


def tiger(setup: Setup) -> optax.GradientTransformation:
    """Tiger: steps relative to each matrix, and to each row of the word table."""
    return ot.tiger(
        setup.learning_rate,
        weight_decay=WEIGHT_DECAY,
        embeddings=r"word/embedding$",
        shrink_to_one=r"scale$",
    )


def lazy_tiger(setup: Setup) -> optax.GradientTransformation:
    """Tiger that leaves the rows of words alone which the batch does not hold."""
    return ot.lazy_rows(tiger(setup), tables=r"word/embedding$")


def mixed_sign(setup: Setup) -> optax.GradientTransformation:
    """Lion, and Adam at five times its rate on the word table."""
    rate: Any = setup.learning_rate  # a schedule, as training makes it
    return ot.mixed_sign(
        rate,
        embeddings=r"word/embedding$",
        adam_learning_rate=lambda step: 5 * rate(step),
        weight_decay=10 * WEIGHT_DECAY,
        mask=decayed,
    )


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """Which share of which leaves a mask keeps, by Fisher information."""

    keep_fraction: float
    where: str

    def __call__(self, fisher: Any) -> Any:
        """A tree of Boolean arrays; a plain True marks a leaf trained densely."""
        return ot.top_fraction_mask(fisher, self.keep_fraction, where=self.where)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A chain, the leaves that it trains, and the model that has them."""

    build: Callable[[Setup], optax.GradientTransformation]
    learning_rate: float  # the best of the full comparison on its default task
    trains: str = ""  # only these leaves are differentiated
    mask: MaskRule | None = None
    model: Callable[..., Classifier] = Classifier
    # From configuration, encoder and Fisher information to initial values.
    start: Callable[[Any, Any, Any], Any] | None = None
    cached: bool = False  # trains on hidden states computed once

    def trained(self, params: Any, mask: Any) -> int:
        """Number of parameters that the recipe may move."""
        chosen = ot.select(params, self.trains)
        if mask is None:
            mask = jax.tree.map(lambda _: True, params)
        sizes = jax.tree.map(
            lambda p, c, m: c * (p.size if m is True else int(m.sum())),
            params,
            chosen,
            mask,
        )
        return sum(jax.tree.leaves(sizes))


LADDER = Recipe(ladder, 3.2e-2, trains=SIDE, model=LadderClassifier)
RECIPES = {
    "full": Recipe(full, 4e-4),
    "head": Recipe(head, 4e-2, trains=HEAD),
    "bitfit": Recipe(bitfit, 1.6e-2, trains=BIASES),
    "lora": Recipe(lora, 8e-3, trains=LORA, model=LoRAClassifier),
    "adapters": Recipe(adapters, 8e-3, trains=ADAPTERS, model=AdapterClassifier),
    "ladder": LADDER,
    "ladder_pruned": dataclasses.replace(LADDER, start=pruned_side),
    "ladder_cached": dataclasses.replace(LADDER, cached=True),
    "child_tuning_d": Recipe(
        child_tuning_d, 4e-4, mask=MaskRule(KEEP_FRACTION, LAYERS)
    ),
    "child_tuning_f": Recipe(child_tuning_f, 8e-4),
    "update_dropout": Recipe(update_dropout, 4e-4),
    "fish": Recipe(fish, 4e-3, mask=MaskRule(FISH_FRACTION, ENCODER)),
    "lion": Recipe(lion, 1.6e-4),
    "tiger": Recipe(tiger, 2e-3),
    "lazy_tiger": Recipe(lazy_tiger, 2e-3),
    "mixed_sign": Recipe(mixed_sign, 1.6e-4),
}
