"""How well digits are told apart by frozen features."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from . import model
from .digits import CLASSES, Digits, view

NEIGHBOURS = 5
# Of the features' mean variance, so that their scale does not matter.
RIDGE = 1e-2
# One view each of the images, the same for every network.
TRAIN_VIEWS, TEST_VIEWS = 1001, 1002

Features = tuple[jax.Array, jax.Array]


def accuracies(features: Features, digits: Digits) -> dict[str, jax.Array]:
    """Of features of the training and of the test images."""
    arguments = (*features, digits.train_labels)
    right = lambda predicted: (predicted == digits.test_labels).mean()
    return {
        "neighbours": right(_nearest(*arguments)),
        "linear": right(_linear(*arguments)),
    }


def views(digits: Digits) -> Features:
    """The pixels that the probes see: a random view of every image."""
    return (
        view(jax.random.key(TRAIN_VIEWS), digits.train),
        view(jax.random.key(TEST_VIEWS), digits.test),
    )


def encoded(digits: Digits) -> Callable[[model.Params], Features]:
    """A function from parameters to the features of those views.

    Layers are normalised by the statistics of the training images alone.
    """
    train, test = views(digits)
    both, n = jnp.concatenate([train, test]), train.shape[0]

    def features(params: model.Params) -> Features:
        found = model.encode(params, both, reference=n)
        return found[:n], found[n:]

    return features


def _nearest(train: jax.Array, test: jax.Array, labels: jax.Array) -> jax.Array:
    """The most frequent label of the nearest training features, by cosine."""
    length = lambda x: jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-12
    similar = (test / length(test)) @ (train / length(train)).T
    nearest = jax.lax.top_k(similar, NEIGHBOURS)[1]
    votes = jax.nn.one_hot(labels[nearest], CLASSES).sum(axis=1)
    return votes.argmax(axis=1)


def _linear(train: jax.Array, test: jax.Array, labels: jax.Array) -> jax.Array:
    """Ridge regression of the label's indicator."""
    mean = train.mean(axis=0)
    x, n, d = train - mean, *train.shape
    wanted = jax.nn.one_hot(labels, CLASSES)
    covariance = x.T @ x / n
    ridge = RIDGE * jnp.trace(covariance) / d + 1e-12
    right = x.T @ (wanted - wanted.mean(axis=0)) / n
    weights = jnp.linalg.solve(covariance + ridge * jnp.eye(d), right)
    scores = (test - mean) @ weights + wanted.mean(axis=0)
    return scores.argmax(axis=1)
