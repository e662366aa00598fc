"""Training all values and seeds of a sweep at once, measured on the way."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

from . import model, probes
from .digits import SIDE, Digits, view
from .variants import Sweep


@dataclasses.dataclass(frozen=True)
class Size:
    """How large network, data and training are.

    Attributes:
      width: of the encoder's hidden layer.
      feature: of features and representations.
      every: steps between two measurements.
      measured: images to measure collapse on.
      train: images to train on.
      test: images for the probes' accuracy.
    """

    width: int
    feature: int
    batch: int
    steps: int
    every: int
    measured: int
    train: int
    test: int


SIZES = {
    "tiny": Size(16, 8, 16, steps=6, every=3, measured=32, train=100, test=50),
    "full": Size(128, 64, 128, steps=400, every=20, measured=256, train=1297, test=500),
}

Measured = dict[str, jax.Array]


class Program:
    """A sweep's compiled training, of all values with every seed."""

    def __init__(self, sweep: Sweep, size: Size, digits: Digits, seeds: int):
        self._size = size
        self._keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
        self._values = jnp.asarray(sweep.values, jnp.float32)
        run = _Run(sweep, size, digits)
        # Views depend on the seed alone, so that values are compared on the same ones.
        every = lambda f, *axes: jax.vmap(jax.vmap(f, axes), (0, None, *axes[2:]))
        both = (self._keys, self._values)
        self._start = jax.jit(every(run.start, None, 0)).lower(*both).compile()
        carry = self._start(*both)
        advance = jax.vmap(run.advance, (None, 0, 0, None))
        advance = jax.vmap(advance, (0, None, 0, None))
        advance = jax.jit(advance, donate_argnums=2)
        self._advance = advance.lower(*both, carry, jnp.asarray(0)).compile()
        tested = jax.jit(jax.vmap(jax.vmap(run.tested)))
        self._tested = tested.lower(carry[0]).compile()

    def run(self, progress: Callable[[], Any]) -> dict[str, Any]:
        """Trains; arrays of shape (seeds, values), and curves with an axis for time."""
        carry = self._start(self._keys, self._values)
        untrained = jax.device_get(self._tested(carry[0]))
        points = []
        for first in range(0, self._size.steps, self._size.every):
            carry, measured = self._advance(
                self._keys, self._values, carry, jnp.asarray(first)
            )
            points.append(jax.device_get(measured))
            progress()
        curves = {name: np.stack([p[name] for p in points], -1) for name in points[0]}
        return {
            "curves": curves,
            "trained": jax.device_get(self._tested(carry[0])),
            "untrained": untrained,
        }


class _Run:
    """One training, as functions of its seed's key and its value."""

    def __init__(self, sweep: Sweep, size: Size, digits: Digits):
        self._sweep, self._size, self._digits = sweep, size, digits
        self._features = probes.encoded(digits)

    def start(self, key: jax.Array, value: jax.Array) -> Any:
        """Parameters and optimizer state."""
        params = model.init(
            jax.random.fold_in(key, 0),
            pixels=SIDE * SIDE,
            width=self._size.width,
            feature=self._size.feature,
        )
        return params, self._chain(value).init(params)

    def advance(
        self, key: jax.Array, value: jax.Array, carry: Any, first: jax.Array
    ) -> tuple[Any, Measured]:
        """Takes steps until the next measurement."""
        tx = self._chain(value)

        def step(carry: Any, number: jax.Array) -> Any:
            params, state = carry
            batch = self._views(jax.random.fold_in(key, number + 1))
            loss, grads = jax.value_and_grad(self._loss)(params, state, batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        steps = first + jnp.arange(self._size.every)
        carry, losses = jax.lax.scan(step, carry, steps)
        images = self._digits.train[: self._size.measured]
        spread = ot.collapse_metrics(model.project(carry[0], images))
        return carry, {"loss": losses.mean(), **spread}

    def tested(self, params: model.Params) -> Measured:
        """The accuracies of both probes."""
        return probes.accuracies(self._features(params), self._digits)

    def _chain(self, value: jax.Array) -> optax.GradientTransformationExtraArgs:
        chain = self._sweep.build(value, self._size.steps)
        return optax.with_extra_args_support(chain)

    def _loss(self, params: model.Params, state: Any, batch: Any) -> jax.Array:
        target = optax.tree.get(state, "ema") if self._sweep.averaged else params
        return model.loss(params, target, batch, stop=self._sweep.stop)

    def _views(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(key, 3)
        images = self._digits.train
        chosen = jax.random.randint(keys[0], (self._size.batch,), 0, images.shape[0])
        batch = images[chosen]
        return view(keys[1], batch), view(keys[2], batch)
