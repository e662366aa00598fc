"""The trainer of Linen models."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

from .models import Form, LinenNet, batch, loss, plain_params
from .training import Step, steps_of

UNROLLED = Form(None, flat=True)
SCANNED = {"first": Form(0), "second": Form(1)}


class LinenTrainer:
    """Flax's `TrainState`."""

    def __init__(self, form: Form):
        self.form = form
        self.net = LinenNet(form.axis)
        self.start(optax.identity())

    def start(self, tx: optax.GradientTransformation, dtype: Any = jnp.float32) -> None:
        params = self.form.pack(plain_params(dtype))
        train: Any = TrainState.create(apply_fn=self.net.apply, params=params, tx=tx)
        self.train = train.replace(step=jnp.zeros((), jnp.int32))

    def params(self) -> Any:
        return self.form.unpack(self.train.params)

    def set_params(self, plain: Any) -> None:
        self.train = self.train.replace(params=self.form.pack(plain))

    def gradients(self, step: int) -> Any:
        return self.form.unpack(gradients(self.net, self.train.params, *batch(step)))

    def apply(self, grads: Any) -> None:
        self.train = apply(self.train, self.form.pack(grads))

    def opt_state(self) -> Any:
        return self.train.opt_state


def error(net: Any) -> Any:
    """The loss as a function of parameters, texts, and what follows."""
    return lambda params, tokens, wanted: loss(
        net.apply({"params": params}, tokens), wanted
    )


@functools.partial(jax.jit, static_argnums=0)
def gradients(net: LinenNet, params: Any, tokens: Any, wanted: Any) -> Any:
    return jax.grad(error(net))(params, tokens, wanted)


@jax.jit
def apply(train: TrainState, grads: Any) -> TrainState:
    return train.apply_gradients(grads=grads)


# One of each form, which is compiled once.
trainer = functools.cache(LinenTrainer)


@functools.cache
def unrolled(recipe: str) -> list[Step]:
    """The steps of the model with a list of layers."""
    return steps_of(trainer(UNROLLED), recipe)
