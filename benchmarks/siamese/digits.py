"""Scikit-learn's own handwritten digits, 8 x 8 pixels, and random views of them.

The images come with that package; nothing is downloaded.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ..finetune.errors import InputError

CLASSES = 10
SIDE = 8
SHIFT = 1  # pixels, at most
CUT = 2  # side of the square cut out
NOISE = 0.1
CONTRAST = (0.8, 1.2)


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images as float32 of shape (n, 64) in [0, 1], and int32 labels.

    Attributes:
      train: images to train on, without their labels, and to fit the probes on.
      train_labels: their labels.
      test: images for the probes' accuracy.
      test_labels: their labels.
    """

    train: jax.Array
    train_labels: jax.Array
    test: jax.Array
    test_labels: jax.Array


@functools.cache
def read_digits(train: int, test: int) -> Digits:
    """The first `train` and the next `test` images in one fixed random order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn: pip install scikit-learn."
        ) from error
    images, labels = load_digits(return_X_y=True)
    if train + test > len(labels):
        raise InputError(f"there are {len(labels)} digits, not {train} + {test}.")
    order = np.random.default_rng(0).permutation(len(labels))
    first, rest = order[:train], order[train : train + test]
    array = lambda rows: jnp.asarray(images[rows] / 16, jnp.float32)
    label = lambda rows: jnp.asarray(labels[rows], jnp.int32)
    return Digits(array(first), label(first), array(rest), label(rest))


@jax.jit
def view(key: jax.Array, images: jax.Array) -> jax.Array:
    """A random view of each image: shifted, cut, of another contrast, and noisy."""
    # Two draws of random numbers, not six: each is a function of its own to compile.
    keys = jax.random.split(key)
    n = images.shape[0]
    *places, light = jax.random.uniform(keys[0], (5, n, 1))
    whole = lambda chance, count: jnp.floor(chance * count).astype(jnp.int32)
    shift = whole(jnp.stack(places[:2]), 2 * SHIFT + 1)
    moved = _moved(images.reshape(n, SIDE, SIDE), shift)
    corner = whole(jnp.stack(places[2:]), SIDE - CUT + 1)
    place = jnp.arange(SIDE)[None]
    inside = (place >= corner) & (place < corner + CUT)
    cut = jnp.where(inside[0][:, :, None] & inside[1][:, None, :], 0.0, moved)
    low, high = CONTRAST
    noise = NOISE * jax.random.normal(keys[1], (n, SIDE * SIDE))
    return (low + (high - low) * light) * cut.reshape(n, SIDE * SIDE) + noise


def _moved(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Each image moved by its own number of pixels; zeros come in.

    A product with 0/1 matrices: gathers with an index an image are slow on CPU.
    """
    place = jnp.arange(SIDE)
    chosen = place[None, :, None] + shift[..., None] - SHIFT == place[None, None, :]
    rows, columns = chosen.astype(images.dtype)
    return jnp.einsum("nij,njk,nlk->nil", rows, images, columns)
