"""Sums of scores over a stream of batches, which Fisher information is the mean of."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .batches import checked_batches
from .example_gradients import (
    Leaves,
    clipped,
    each,
    fold,
    fold_lanes,
    gradient_sum,
    lanes_of,
    leading_size,
    plus,
    powers,
)
from .likelihood import Labels, expected_scores, label_objective, label_scores

Per = Literal["example", "batch"]


class Plan(NamedTuple):
    """What stays the same over all batches of a call."""

    log_p: Callable[[Leaves, Leaves, Any], jax.Array]
    labels: Labels
    per: Per
    power: int
    clip_norm: float | None
    layers: list[int | None]
    microbatch_size: int | None


def score_sums(
    plan: Plan, chosen: Leaves, rest: Leaves, key: Any, stream: Iterable[Any]
) -> tuple[Leaves, int]:
    """Sums of scores and, last, of the excess; and how many terms they have."""
    # The running sums are donated and nothing is read back: the host only hands
    # over the next batch.
    add = jax.jit(
        functools.partial(_add_batch, plan), donate_argnums=0, static_argnums=6
    )
    sums = [jnp.zeros_like(x, jnp.float32) for x in chosen]
    sums.append(jnp.zeros((), jnp.float32))
    examples = number = 0
    for size, batch in checked_batches(stream):
        lanes = lanes_of(batch, min(plan.microbatch_size or 1, size))
        sums = add(sums, chosen, rest, key, batch, np.uint32(examples), lanes)
        examples, number = examples + size, number + 1
    return sums, examples if plan.per == "example" else number


def _add_batch(
    plan: Plan,
    sums: Leaves,
    chosen: Leaves,
    rest: Leaves,
    key: Any,
    batch: Any,
    first: jax.Array,
    lanes: Any,
) -> Leaves:
    size = leading_size(batch)
    numbered = batch, first + jnp.arange(size, dtype=jnp.uint32)
    log_p = lambda chosen, example: plan.log_p(chosen, rest, example)
    objective = functools.partial(label_objective, log_p, key, plan.labels)
    if plan.per == "example":
        rule, on = label_scores, objective
        if plan.labels == "expected":
            rule, on = expected_scores, log_p
        one = functools.partial(rule, on, plan.power, chosen)
        width = min(plan.microbatch_size or 1, size)
        if lanes is not None:
            return fold_lanes(one, sums, numbered, width, lanes)
        return fold(each(one), sums, numbered, width)
    part = gradient_sum(objective, chosen)
    zeros = [jnp.zeros_like(x) for x in sums]
    total = fold(part, zeros, numbered, min(plan.microbatch_size or size, size))
    *means, excess = [x / size for x in total]
    grads = [
        clipped(x, plan.clip_norm, layer)
        for x, layer in zip(means, plan.layers, strict=True)
    ]
    return plus(sums, [*powers(grads, plan.power), excess])
