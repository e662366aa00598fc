"""An NNX model with stacked layers trains as the one with a list of them."""

import functools
from typing import Any

import jax
import optax
from flax import nnx

from .models import (
    HEAD_SIZE,
    HEADS,
    LAYER,
    LAYERS,
    REST,
    WIDTH,
    Form,
    NnxNet,
    batch,
    loss,
    plain_params,
)
from .training import (
    Step,
    assert_trains_as,
    each_form_and_recipe,
    paths,
    steps_of,
)

LIST, STACK = Form(None), Form(0)
# Layers one after another, and all of them side by side.
AVERAGED = {"scanned": False, "mapped": True}


class NnxTrainer:
    """An `nnx.Optimizer` beside a model."""

    def __init__(self, form: Form, averaged: bool):
        self.form = form
        make = lambda: NnxNet(
            stacked=form.axis is not None, averaged=averaged, rngs=nnx.Rngs(0)
        )
        graph, state = nnx.split(nnx.eval_shape(make))
        self.net = nnx.merge(graph, self._filled(state, plain_params()))
        self.start(optax.identity())

    def start(self, tx: optax.GradientTransformation) -> None:
        self.set_params(plain_params())
        self.optimizer = nnx.Optimizer(self.net, tx, wrt=nnx.Param)

    def params(self) -> Any:
        return self.form.unpack(nnx.to_pure_dict(nnx.state(self.net, nnx.Param)))

    def set_params(self, plain: Any) -> None:
        nnx.update(self.net, self._like_params(plain))

    def gradients(self, step: int) -> Any:
        grads = gradients(self.net, *batch(step))
        return self.form.unpack(nnx.to_pure_dict(grads))

    def apply(self, grads: Any) -> None:
        apply(self.optimizer, self.net, self._like_params(grads))

    def opt_state(self) -> Any:
        return self.optimizer.opt_state

    def _like_params(self, plain: Any) -> nnx.State:
        return self._filled(nnx.state(self.net, nnx.Param), plain)

    def _filled(self, state: nnx.State, plain: Any) -> nnx.State:
        state = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(state, self.form.pack(plain))
        return state


@nnx.jit
def gradients(net: NnxNet, tokens: Any, wanted: Any) -> nnx.State:
    return nnx.grad(lambda net: loss(net(tokens), wanted))(net)


@nnx.jit
def apply(optimizer: nnx.Optimizer, net: NnxNet, grads: nnx.State) -> None:
    optimizer.update(net, grads)


# One of each, which is compiled once.
trainer = functools.cache(NnxTrainer)


@functools.cache
def unrolled(recipe: str, averaged: bool) -> list[Step]:
    """The steps of the model with a list of layers."""
    return steps_of(trainer(LIST, averaged), recipe)


def test_paths() -> None:
    """A stack has the path of one layer; Variables show no step of their own."""
    state = nnx.state(trainer(STACK, False).net, nnx.Param)
    assert paths(state) == [*REST, *(f"layers/{path}" for path in LAYER)]
    assert paths(nnx.to_pure_dict(state)) == paths(state)
    attention: Any = nnx.to_pure_dict(state)["layers"]["attention"]
    assert attention["query"]["kernel"].shape == (LAYERS, WIDTH, HEADS, HEAD_SIZE)
    assert attention["query"]["bias"].shape == (LAYERS, HEADS, HEAD_SIZE)
    listed = nnx.state(trainer(LIST, False).net, nnx.Param)
    each = [f"layers/{i}/{path}" for i in range(LAYERS) for path in LAYER]
    assert paths(listed) == [*REST, *each]


@each_form_and_recipe(
    AVERAGED,
    {"scanned": ["inside", "everything"], "mapped": ["everything"]},
    brief="scanned-inside",
)
def test_trains_as_its_unrolled_twin(form: bool, recipe: str) -> None:
    assert_trains_as(unrolled(recipe, form), trainer(STACK, form), recipe)
