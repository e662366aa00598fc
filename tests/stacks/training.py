"""How a form is trained, and what it must have in common with its unrolled twin.

A trainer is one framework's own loop. What goes into it and comes out are plain trees,
so that those of two forms can be compared and exchanged.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.problems import assert_same, pure

from .models import STEPS, Form, plain_params
from .recipes import RECIPES


def each_form_and_recipe(
    forms: Mapping[str, Any], taken: Mapping[str, Iterable[str]], *, brief: str = ""
) -> Any:
    """Every form is trained by the recipes taken; all but the brief case are slow."""
    cases = {
        f"{form}-{recipe}": (forms[form], recipe)
        for form, recipes in taken.items()
        for recipe in recipes
    }
    marks = lambda case: [] if case == brief else [pytest.mark.slow]
    params = [pytest.param(*cases[case], id=case, marks=marks(case)) for case in cases]
    return pytest.mark.parametrize(("form", "recipe"), params)


def paths(tree: Any) -> list[str]:
    """The paths of a tree as selectors see them."""
    found: list[str] = []
    ot.select(tree, lambda path, leaf: found.append(path) is None)
    return found


class Trainer(Protocol):
    """A model of some form; its parameters are at first those that all begin with."""

    form: Form

    def start(self, tx: optax.GradientTransformation) -> None:
        """Begins anew, with an optimizer."""

    def params(self) -> Any: ...

    def set_params(self, plain: Any) -> None: ...

    def gradients(self, step: int) -> Any: ...

    def apply(self, grads: Any) -> None: ...

    def opt_state(self) -> Any: ...


class Step(NamedTuple):
    """What the gradients of an unrolled model were, and what a step with them led to.

    Attributes:
      grads: the gradients.
      params: the parameters behind the step.
      seen: what `seen` shows behind the step.
    """

    grads: Any
    params: Any
    seen: dict[str, Any]


def seen(trainer: Trainer) -> dict[str, Any]:
    """The average of parameters, and the readings of monitors, if there are such."""
    state = pure(trainer.opt_state())
    ema = optax.tree.get(state, "ema")
    average = {} if ema is None else {"ema": trainer.form.unpack(ema)}
    return {**average, **ot.metrics(state)}


@functools.cache
def optimizer_for(trainer: Trainer, recipe: str) -> optax.GradientTransformation:
    """A recipe's optimizer; its Fisher scores are those of one batch."""
    trainer.set_params(plain_params())
    scores = jax.tree.map(np.square, trainer.gradients(0))
    return RECIPES[recipe](trainer.form.stacks, trainer.form.pack(scores))


def steps_of(trainer: Trainer, recipe: str) -> list[Step]:
    """Trains an unrolled model."""
    trainer.start(optimizer_for(trainer, recipe))
    taken = []
    for step in range(STEPS):
        grads = trainer.gradients(step)
        trainer.apply(grads)
        taken.append(Step(grads, trainer.params(), seen(trainer)))
        _check_signs(trainer)
    return taken


def _check_signs(trainer: Trainer) -> None:
    """No sign hangs on a rounding: no momentum comes near zero without being zero."""
    is_sign = lambda node: isinstance(node, ot.LionState | ot.TigerState)
    for node in jax.tree.leaves(pure(trainer.opt_state()), is_leaf=is_sign):
        for momentum in jax.tree.leaves(node.mu) if is_sign(node) else ():
            sizes = np.abs(momentum)
            assert sizes[sizes > 0].min(initial=np.inf) > 1e-6 * sizes.max()


def assert_trains_as(twin: list[Step], trainer: Trainer, recipe: str) -> None:
    """From equal parameters equal steps follow, and left alone it stays near.

    Its own gradients are rounded otherwise than the twin's. What that changes in the
    parameters comes back in the gradients of the next step, and the quotients of Adam
    and the roots of Muon enlarge it: up to eight times a step.
    """
    tx = optimizer_for(trainer, recipe)
    trainer.start(tx)
    for want in twin:
        trainer.apply(want.grads)
        ulps = 16 if recipe == "muon" else 2
        assert_same(trainer.params(), want.params, ulps=ulps)
        assert_same(seen(trainer), want.seen, ulps=ulps)
        trainer.set_params(want.params)
    trainer.start(tx)
    for step, want in enumerate(twin):
        trainer.apply(trainer.gradients(step))
        assert_same(trainer.params(), want.params, ulps=drift(step, recipe))


def drift(step: int, recipe: str) -> int:
    """How far a model that is left alone may be from its twin behind a step."""
    return (16 if recipe == "muon" else 4) * 8**step
