"""Layers stacked by hand, and run by `jax.lax.scan`, train as a list of them.

The list is Linen's, whose layers these are.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optaxtricks as ot

from .linen import unrolled
from .models import Form, batch, hand_net, loss, plain_params
from .recipes import RECIPES
from .training import (
    assert_trains_as,
    each_form_and_recipe,
)

FORMS = {"first": Form(0), "second": Form(1)}


class HandTrainer:
    """Plain JAX."""

    def __init__(self, form: Form):
        self.form = form
        self.start(optax.identity())

    def start(self, tx: optax.GradientTransformation) -> None:
        self._params = self.form.pack(plain_params())
        self._update, self._state = jax.jit(tx.update), tx.init(self._params)

    def params(self) -> Any:
        return self.form.unpack(self._params)

    def set_params(self, plain: Any) -> None:
        self._params = self.form.pack(plain)

    def gradients(self, step: int) -> Any:
        return self.form.unpack(gradients(self.form.axis, self._params, *batch(step)))

    def apply(self, grads: Any) -> None:
        updates, self._state = self._update(
            self.form.pack(grads), self._state, self._params
        )
        self._params = optax.apply_updates(self._params, updates)

    def opt_state(self) -> Any:
        return self._state


@functools.partial(jax.jit, static_argnums=0)
def gradients(axis: int, params: Any, tokens: Any, wanted: Any) -> Any:
    return jax.grad(lambda params: loss(hand_net(axis, params, tokens), wanted))(params)


@each_form_and_recipe(FORMS, {"first": RECIPES, "second": ["everything"]})
def test_trains_as_its_unrolled_twin(form: Form, recipe: str) -> None:
    assert_trains_as(unrolled(recipe), HandTrainer(form), recipe)


def test_nan_in_one_layer_shrinks_that_layer_alone() -> None:
    params = {"layers": FORMS["second"].pack(plain_params())["layers"]["dense"]}
    grads = jax.tree.map(jnp.ones_like, params)
    grads["layers"]["kernel"] = grads["layers"]["kernel"].at[3, 2, 3].set(jnp.nan)
    tx = ot.per_layer(ot.tiger(0.1, shrink=0.5), {"^layers/": 1})
    updates: Any = jax.jit(tx.update)(grads, tx.init(params), params)[0]
    halved = updates["layers"]["kernel"] == -0.5 * params["layers"]["kernel"]
    assert halved.all(axis=(0, 2)).tolist() == [False, False, True, False]
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
