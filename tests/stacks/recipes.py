"""Chains of tricks that train a model in whatever form its layers are written down.

A recipe is a function of the stacks, None for a list of layers, and of Fisher scores.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

import optaxtricks as ot

from .models import LAYERS

Recipe = Callable[[Any, Any], optax.GradientTransformationExtraArgs]
RATE = 0.05
TABLE, NORMS = "^embed/", "(norm|_ln)/scale$"


def _per_layer(inner: optax.GradientTransformation, stacked: Any) -> Any:
    """One layer at a time, where there are stacks."""
    return inner if stacked is None else ot.per_layer(inner, stacked)


def _watch(name: str, stacked: Any, *, inside: bool = False) -> Any:
    """A monitor that reads every layer by itself, also inside of per_layer."""
    each = {rf"^layers[/_]{i}/": f"layers/{i}" for i in range(LAYERS)}
    labels = each if stacked is None else {"^layers/": "layers"}
    return ot.monitor_groups(
        ot.label_by_path(labels, default="rest"),
        name=name,
        stacked=None if inside else stacked,
    )


def everything(stacked: Any, scores: Any) -> Any:
    """Most tricks in one chain."""
    noisy = optax.chain(
        ot.gradient_dropout(0.8, key=1),
        ot.tiger(RATE, embeddings=TABLE, shrink_to_one=NORMS),
        ot.update_dropout(0.8, key=2, granularity="leaf"),
    )
    mask = jax.tree.map(lambda score: score > 1e-4, scores)
    tuning = ot.child_tuning_d(_per_layer(noisy, stacked), mask)
    return optax.chain(
        _watch("gradients", stacked),
        ot.lazy_rows(tuning, tables=TABLE),
        ot.scale_by_depth(0.9, stacked=stacked, first=TABLE),
        ot.ema_params(0.9),
    )


def tiger(stacked: Any, scores: Any) -> Any:
    """Steps relative to each matrix, and in the table to each row."""
    del scores
    return _per_layer(ot.tiger(RATE, embeddings=TABLE), stacked)


def lamb(stacked: Any, scores: Any) -> Any:
    """Child-Tuning-D, of the best entries of each tensor, with one norm a tensor."""
    mask = ot.top_fraction_mask(scores, 0.5, scope="leaf", stacked=stacked)
    steps = optax.lamb(RATE, eps=1e-3, weight_decay=0.1)
    return ot.child_tuning_d(_per_layer(steps, stacked), mask)


def muon(stacked: Any, scores: Any) -> Any:
    """A method of matrices, such as the biases of attention are too."""
    del scores
    return _per_layer(optax.contrib.muon(RATE, eps=1e-3), stacked)


def dropout(stacked: Any, scores: Any) -> Any:
    """Gradients and whole updates that drop out, others in every layer."""
    del scores
    noisy = optax.chain(
        ot.gradient_dropout(0.5, key=1),
        optax.adamw(RATE, eps=1e-3, weight_decay=0.1),
        ot.update_dropout(0.7, key=2, granularity="leaf"),
    )
    return _per_layer(noisy, stacked)


def lion(stacked: Any, scores: Any) -> Any:
    """Rows of the table that rest, and a monitor, outside of per_layer."""
    del scores
    steps = _per_layer(ot.lion(RATE, weight_decay=0.1), stacked)
    lazy = ot.lazy_rows(steps, tables=TABLE)
    return optax.chain(lazy, _watch("updates", stacked))


def inside(stacked: Any, scores: Any) -> Any:
    """The same inside, with moments that rest too."""
    del scores
    steps = ot.lion(RATE, weight_decay=0.1)
    chain = optax.chain(
        ot.lazy_rows(steps, tables=TABLE, moments="freeze"),
        _watch("updates", stacked, inside=True),
    )
    return _per_layer(chain, stacked)


RECIPES: dict[str, Recipe] = {
    recipe.__name__: recipe
    for recipe in (everything, tiger, lamb, muon, dropout, lion, inside)
}
