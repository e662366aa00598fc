"""Log-likelihoods of labels: observed, drawn from the model, or all of them.

Every function also reports the excess: how far the probabilities are from summing to
one, on a log scale. It is how raw logits are told from log-probabilities.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from .counter_hash import key_words
from .example_gradients import Leaves, Objective, plus, powers

Labels = Literal["observed", "sampled", "expected"]
LABELS = ("observed", "sampled", "expected")
LogP = Callable[[Leaves, Any], jax.Array]


def label_objective(
    log_p: LogP, key: Any, labels: Labels, chosen: Leaves, numbered: Any
) -> tuple[jax.Array, jax.Array]:
    """The log-likelihood of an example's label, observed or drawn, and the excess."""
    example, number = numbered
    logs = log_p(chosen, example)
    if labels == "observed":
        return logs, jnp.zeros((), jnp.float32)
    frozen = jax.lax.stop_gradient(logs).astype(jnp.float32)
    label = jax.random.categorical(jax.random.fold_in(key, number), frozen)
    return logs[label], _excess(frozen)


def label_scores(
    objective: Objective, power: int, chosen: Leaves, numbered: Any
) -> Leaves:
    """Powers of the gradient for an example's label, and last the excess."""
    grads, excess = jax.grad(objective, has_aux=True)(chosen, numbered)
    return [*powers(grads, power), excess]


def expected_scores(log_p: LogP, power: int, chosen: Leaves, numbered: Any) -> Leaves:
    """Such powers' expectation over all classes, by a backward pass for each class."""
    logs, pullback = jax.vjp(lambda chosen: log_p(chosen, numbered[0]), chosen)
    classes = jnp.arange(logs.shape[0])

    def add(sums: Leaves, term: tuple[jax.Array, jax.Array]) -> tuple[Leaves, None]:
        label, p = term
        (grads,) = pullback((classes == label).astype(logs.dtype))
        # An impossible class (log p = -inf) has no gradient, and no say.
        weighted = [jnp.where(p == 0, 0, p * x) for x in powers(grads, power)]
        return plus(sums, weighted), None

    zeros = [jnp.zeros(jnp.shape(x), jnp.float32) for x in chosen]
    probabilities = jnp.exp(logs.astype(jnp.float32))
    sums, _ = jax.lax.scan(add, zeros, (classes, probabilities))
    return [*sums, _excess(logs)]


def sampling_key(key: Any, labels: str) -> jax.Array | None:
    """A typed key if labels are drawn, else None."""
    if labels != "sampled":
        if key is not None:
            raise ValueError(f"key goes with labels='sampled', not with {labels!r}.")
        return None
    if key is None:
        raise ValueError("labels='sampled' needs a key.")
    words = key_words(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    # Raw words do not say whose they are, but their number does.
    impl = "threefry2x32" if words.shape[0] == 2 else "rbg"
    return jax.random.wrap_key_data(jnp.asarray(words), impl=impl)


def checked_output(logs: Any, labels: str) -> jax.Array:
    """What `log_likelihood` returned, if it has the shape that these labels need."""
    rank = 0 if labels == "observed" else 1
    shape = getattr(logs, "shape", None)
    if shape is None or len(shape) != rank or 0 in shape:
        raise ValueError(
            "log_likelihood must return "
            f"{['a scalar', 'a vector of log-probabilities'][rank]} for "
            f"labels={labels!r}, got "
            f"{type(logs).__name__ if shape is None else f'shape {tuple(shape)}'}."
        )
    if not jnp.issubdtype(logs.dtype, jnp.floating):
        raise TypeError(f"log_likelihood must return floats, got {logs.dtype}.")
    return logs


def _excess(logs: jax.Array) -> jax.Array:
    return jnp.abs(jax.nn.logsumexp(logs.astype(jnp.float32)))
