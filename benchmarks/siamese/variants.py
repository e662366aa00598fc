"""The sweeps, each over one number of an ordinary Optax chain to copy out.

All values of a sweep, and all seeds, are trained at once by `jax.vmap`, so a chain is
built inside of it from a traced number. To add a sweep, write a function like those
below and give it a line in SWEEPS.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

import optaxtricks as ot

RATE = 0.3
MOMENTUM = 0.9
DECAY = 5e-4
PREDICTOR = "^predictor/"

SPEEDS = (0.1, 0.3, 1.0, 3.0, 10.0)


def cosine(steps: int) -> optax.Schedule:
    """The encoder's rate."""
    return optax.cosine_decay_schedule(RATE, steps)


def sgd() -> optax.GradientTransformation:
    """SGD with momentum and coupled decay, as SimSiam has it, without a rate."""
    return optax.chain(optax.add_decayed_weights(DECAY), optax.trace(MOMENTUM))


def predictor_speed(kappa: Any, steps: int) -> optax.GradientTransformation:
    """The predictor at `kappa` times the encoder's rate."""
    return optax.chain(
        sgd(),
        ot.scale_by_path({PREDICTOR: kappa}),
        optax.scale_by_learning_rate(cosine(steps)),
    )


def fixed_predictor(kappa: Any, steps: int) -> optax.GradientTransformation:
    """The predictor at a rate that stays, beside an encoder whose rate goes to zero."""
    return ot.two_timescale(
        sgd(), cosine(steps), fast=PREDICTOR, fast_learning_rate=kappa * RATE
    )


def target_decay(decay: Any, steps: int) -> optax.GradientTransformation:
    """BYOL: the other side is a moving average of the parameters."""
    return optax.chain(
        sgd(), optax.scale_by_learning_rate(cosine(steps)), ot.ema_params(decay)
    )


def target_schedule(base: Any, steps: int) -> optax.GradientTransformation:
    """The same with the published schedule of the decay."""
    return target_decay(ot.cosine_ema_decay(base, steps), steps)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A chain, the values of its number, and the objective that goes with it.

    Attributes:
      build: from a value and the number of steps, the chain.
      values: what is compared.
      number: the name of the number.
      stop: whether gradients are kept out of what is predicted.
      averaged: whether the other side computes with the state's `ema`.
    """

    build: Callable[[Any, int], optax.GradientTransformation]
    values: tuple[float, ...]
    number: str
    stop: bool = True
    averaged: bool = False


SWEEPS = {
    "stop_gradient": Sweep(predictor_speed, SPEEDS, "predictor's rate x"),
    "no_stop_gradient": Sweep(
        predictor_speed, SPEEDS, "predictor's rate x", stop=False
    ),
    "fixed_predictor": Sweep(fixed_predictor, SPEEDS[1:4], "predictor's rate x"),
    "target_decay": Sweep(
        target_decay, (0.0, 0.9, 0.99, 0.999, 1.0), "decay", averaged=True
    ),
    "target_schedule": Sweep(target_schedule, (0.9, 0.99), "base", averaged=True),
}
