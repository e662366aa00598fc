"""The optimizers under comparison, each an ordinary Optax chain to copy out.

To add one, write a function like those below and give it a line in VARIANTS.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optaxtricks as ot

from .model import Tying

# On Lion's own scale: a stuck entry of the table comes to stand at 1 / DECAY.
DECAY = 1.0
LION_RATE = 2e-3
TIGER_RATE = 1e-2
# Adam bears a few times Lion's rate; rate times decay is the same for both.
ADAM_RATE = 5e-3
ADAM_DECAY = DECAY * LION_RATE / ADAM_RATE
DEAD_ZONE = 1e-5

TABLE = r"^embedding$"


def matrices(params: Any) -> Any:
    """Which leaves weight decay acts on: all but the norms' scales."""
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)


def adam() -> optax.GradientTransformation:
    """AdamW."""
    return optax.adamw(ADAM_RATE, weight_decay=ADAM_DECAY, mask=matrices)


def lion(**options: Any) -> optax.GradientTransformation:
    """Lion."""
    return ot.lion(LION_RATE, weight_decay=DECAY, mask=matrices, **options)


def lion_cautious() -> optax.GradientTransformation:
    """Lion that moves an entry only where its gradient agrees."""
    return lion(cautious=True)


def lion_dead_zone() -> optax.GradientTransformation:
    """Lion that lets entries rest whose momentum has nearly faded."""
    return lion(dead_zone=DEAD_ZONE)


def tiger() -> optax.GradientTransformation:
    """Tiger as published: the word table's steps are relative to each row's size."""
    return ot.tiger(TIGER_RATE, weight_decay=DECAY, embeddings=TABLE)


def tiger_whole() -> optax.GradientTransformation:
    """Tiger with steps relative to the whole table's size."""
    return ot.tiger(TIGER_RATE, weight_decay=DECAY)


def lazy_lion_decay() -> optax.GradientTransformation:
    """Lion that leaves the rows alone which the batch does not hold."""
    return ot.lazy_rows(lion(), tables=TABLE)


def lazy_lion_freeze() -> optax.GradientTransformation:
    """The same, their momentum kept as it is too."""
    return ot.lazy_rows(lion(), tables=TABLE, moments="freeze")


def lazy_tiger_decay() -> optax.GradientTransformation:
    """Tiger that leaves the rows alone which the batch does not hold."""
    return ot.lazy_rows(tiger(), tables=TABLE)


def lazy_tiger_freeze() -> optax.GradientTransformation:
    """The same, their momentum kept as it is too."""
    return ot.lazy_rows(tiger(), tables=TABLE, moments="freeze")


def mixed() -> optax.GradientTransformation:
    """Lion, and Adam (without decay) on the word table."""
    return ot.mixed_sign(
        LION_RATE,
        embeddings=TABLE,
        adam_learning_rate=ADAM_RATE,
        weight_decay=DECAY,
        mask=matrices,
    )


@dataclasses.dataclass(frozen=True)
class Variant:
    """A chain, and the model that it trains."""

    build: Callable[[], optax.GradientTransformation]
    tying: Tying = "none"


VARIANTS = {
    "adam": Variant(adam),
    "lion": Variant(lion),
    "tiger": Variant(tiger),
    "tiger_whole": Variant(tiger_whole),
    "lazy_lion_decay": Variant(lazy_lion_decay),
    "lazy_lion_freeze": Variant(lazy_lion_freeze),
    "lazy_tiger_decay": Variant(lazy_tiger_decay),
    "lazy_tiger_freeze": Variant(lazy_tiger_freeze),
    "mixed": Variant(mixed),
    "lion_cautious": Variant(lion_cautious),
    "lion_dead_zone": Variant(lion_dead_zone),
    "lion_tied": Variant(lion, tying="plain"),
    "lion_half_swap": Variant(lion, tying="half_swap"),
}
