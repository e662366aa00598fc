"""Every row of tests/cases.py as the compilers of a TPU and of a GPU make it.

The compilers are those of `make compiled`; what they made is kept in build/compiled, so
that a run goes on where the last one stopped.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.compiled.hlo import parse
from benchmarks.compiled.ptx import Kernel
from benchmarks.compiled.recipes import RECIPES, gradients, parameters
from benchmarks.compiled.steps import Program, compiled_step
from benchmarks.compiled.targets import Target, placed
from benchmarks.compiled.traffic import Exchange, traffic
from tests.cases import CASES
from tests.collectives import ALLOWED
from tests.collectives import Exchange as Found

from .promises import PROMISES, RECIPE_PROMISES, Make, Promise, but
from .test_traffic import HOST, LOOP, TPU, TWICE

FOLDER = Path(__file__).parents[2] / "build" / "compiled"
TARGETS = ("h100", "v5e:2x2")
DTYPES = ("float32", "bfloat16")
each_target = pytest.mark.parametrize("target", TARGETS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def _params(target: str, dtype: Any, side: int) -> Any:
    shapes = {"emb": (side, side), "b": (side,), "w": (256, side), "scale": ()}
    return placed(Target(target).mesh(), shapes, dtype)


@functools.cache
def _step(make: Make, target: str, dtype: Any, side: int) -> Program:
    params = _params(target, dtype, side)
    return compiled_step(make(params), params, kernels=True, folder=FOLDER)


@functools.cache
def _recipe_step(name: str, target: str, size: str) -> Program:
    recipe = RECIPES[name]
    params = parameters(Target(target).mesh(), size, jnp.float32)
    return compiled_step(
        recipe.make(params),
        params,
        grads=gradients(recipe, params),
        kernels=True,
        folder=FOLDER,
    )


def _allows(kind: str, leaf: tuple[int, ...], exchange: Exchange) -> bool:
    """Whatever shape a compiler gives it; a permutation moves less than a sum."""
    sent = exchange.kind.replace("collective-permute", "all-reduce")
    size = exchange.array.size
    return ALLOWED[kind](Found(sent, (size,) if size > 1 else ()), leaf)


@pytest.mark.compiled
@each_dtype
@each_target
@pytest.mark.parametrize("name", CASES)
def test_a_transformation_costs_no_more_than_promised(
    name: str, target: str, dtype: str
) -> None:
    case, promise = CASES[name], PROMISES[name].of(target, dtype)
    held = jax.tree.leaves(case.params(jnp.dtype(dtype)))[0].dtype
    with jax.numpy_dtype_promotion(case.promotion):
        one = _step(case.make, target, held, promise.side)
    with jax.numpy_dtype_promotion("standard"):
        base = _step(promise.base, target, held, promise.side)
    kind = "nothing" if case.elementwise else case.exchange
    # Entries of vectors may move, those of matrices stay where they are.
    kind = kind.replace("leaves", "rows")
    allowed = functools.partial(_allows, kind, (promise.side,))
    broken = list(promise.broken(one, base, allowed))
    assert not broken, "\n".join(broken)


@pytest.mark.compiled
@pytest.mark.parametrize(("name", "target", "size"), RECIPE_PROMISES)
def test_an_optimizer_costs_no_more_than_promised(
    name: str, target: str, size: str
) -> None:
    recipe, promise = RECIPES[name], RECIPE_PROMISES[name, target, size]
    with jax.numpy_dtype_promotion("standard"):
        one = _recipe_step(name, target, size)
        base = _recipe_step(recipe.base, target, size)
    kind = "nothing" if recipe.lookups is None else "leaves"
    rows = (recipe.lookups or 0, 512)
    broken = list(promise.broken(one, base, functools.partial(_allows, kind, rows)))
    assert not broken, "\n".join(broken)


def test_every_transformation_has_a_promise() -> None:
    assert PROMISES.keys() == CASES.keys()


def _program(text: str, **figures: Any) -> Program:
    none: Any = {"seconds": 0.0, "temporaries": 0, "params": 4096, "kernels": []}
    return Program(traffic=traffic(parse(text)), **none | figures)


TWO_READS = Promise(reread=1)


@pytest.mark.parametrize(
    ("word", "program", "promise"),
    [
        ("moved 1.5015 > 1.02", _program(TWICE), Promise()),
        ("temporaries 0.5000 > 0.01", _program(TWICE, temporaries=2048), TWO_READS),
        ("launches 2 > 1", _program(TWICE), but(TWO_READS, launches=(0.5, 0))),
        ("arrays 0.0000 > -1", _program(TWICE), but(TWO_READS, more=-1)),
        ("loops", _program(LOOP), Promise(moved=9, launches=(9, 0), more=9)),
        ("collectives", _program(TPU), Promise(moved=9, more=99)),
        ("host transfers", _program(HOST), Promise(moved=9, more=9)),
        ("spills", _program(TWICE, kernels=[Kernel("k", 99, 8)]), TWO_READS),
        ("registers", _program(TWICE, kernels=[Kernel("k", 255, 0)]), TWO_READS),
    ],
)
def test_a_broken_promise_is_told_with_its_lines(
    word: str, program: Program, promise: Promise
) -> None:
    (told,) = promise.broken(program, _program(TWICE), lambda exchange: False)
    figures, *lines = told.splitlines()
    assert figures == word and lines
    assert not list(TWO_READS.broken(_program(TWICE), _program(TWICE), bool))


def test_collectives_of_one_kind_are_merged() -> None:
    program, promise = _program(TPU), Promise(moved=9, exchanges=0, more=99)
    (told,) = promise.broken(program, program, lambda exchange: True)
    assert told.startswith("collectives 1 > 0\n  %ended")


def test_a_promise_may_differ_by_target_and_dtype() -> None:
    promise = Promise(on={"h100": {"moved": 2.0}, "h100 bfloat16": {"reread": 3}})
    assert promise.of("h100", "bfloat16") == but(promise, moved=2.0, reread=3)
    assert promise.of("h100", "float32") == but(promise, moved=2.0)
    assert promise.of("v5e:2x2", "bfloat16") == promise
