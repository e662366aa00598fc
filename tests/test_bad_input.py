"""Garbage in: a documented error that names the argument, from our own code.

Never silence, never a crash inside JAX or Optax, and no state touched.
"""

import inspect
import traceback
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.bad_input import TABLE, Entry
from tests.cases import CASES, Case
from tests.problems import assert_same, gradients, layout
from tests.test_public_api import PUBLIC

HOME = str(Path(inspect.getfile(ot)).parent)
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
BAD = [
    pytest.param(TABLE[name], row, value, id=f"{name}-{row.argument}-{i}.{j}")
    for name in TABLE
    for i, row in enumerate(TABLE[name].bad)
    for j, value in enumerate(row.values)
]


@pytest.fixture(autouse=True)
def every_frame():
    """Tracebacks as they are: JAX hides its own frames by default."""
    with jax.numpy_dtype_promotion("standard"):
        config: Any = jax.config
        before = config.jax_traceback_filtering
        config.update("jax_traceback_filtering", "off")
        yield
        config.update("jax_traceback_filtering", before)


def assert_ours(error: BaseException) -> None:
    """The error was raised by a line of this package."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    assert frames[-1].startswith(HOME), f"raised in {frames[-1]}"


def test_the_table_is_long_and_has_every_public_name():
    assert len(BAD) >= 150
    states = {name for name in PUBLIC if name.endswith("State")}
    modules = {name for name, value in PUBLIC.items() if inspect.ismodule(value)}
    names = {name.removesuffix(".open").removesuffix(".from_lookup") for name in TABLE}
    assert names == set(PUBLIC) - states - modules
    for entry in TABLE.values():
        assert entry.bad


@pytest.mark.parametrize("entry", TABLE.values(), ids=TABLE)
def test_good_arguments_are_good(entry: Entry):
    if entry.good:
        entry.call(**entry.good)


@pytest.mark.parametrize(("entry", "row", "value"), BAD)
def test_bad_arguments_are_refused(entry: Entry, row: Any, value: Any):
    with pytest.raises(row.error, match=row.message) as caught:
        entry.call(**{**entry.good, row.argument: value})
    assert_ours(caught.value)
    assert type(caught.value) in (TypeError, ValueError)


def _without_optax(case: Case, params: Any) -> Any:
    """The case's transformation, around one of ours where it wraps another."""
    arguments = case.arguments(params)
    if "inner" in arguments:
        arguments["inner"] = ot.scale_by_lion()
    return case.factory(**arguments)


UPDATES: dict[str, Any] = {
    "one more leaf": lambda g: {**g, "new": jnp.ones((8, 8))},
    "one less leaf": lambda g: {"emb": g["emb"], "layer": g["layer"]},
    "a broadcastable leaf": lambda g: {**g, "emb": g["emb"][:, :1]},
    "a leaf of another shape": lambda g: {**g, "emb": g["emb"][:5, :3]},
    "a leaf of another rank": lambda g: {**g, "emb": g["emb"][0]},
    "an integer leaf": lambda g: {**g, "emb": jnp.ones((16, 8), int)},
    "a string": lambda g: {**g, "emb": "x"},
    "an object": lambda g: {**g, "emb": object()},
    "a hole": lambda g: {**g, "emb": None},
    "nothing": lambda g: None,
    "an array": lambda g: g["emb"],
}


@pytest.mark.parametrize("spoil", UPDATES.values(), ids=UPDATES)
@each_case
def test_bad_updates_are_refused_or_handled_whole(case: Case, spoil: Any):
    params = case.params(jnp.float32)
    tx, extra = _without_optax(case, params), case.extra_args(params)
    state, updates = tx.init(params), spoil(gradients(params))
    before = jax.tree.map(jnp.copy, state)
    try:
        got, after = tx.update(updates, state, params, **extra)
    except (TypeError, ValueError) as error:
        assert_ours(error)
    else:
        # A transformation that knows no shapes has nothing to compare.
        assert layout(got) == layout(updates)
        assert layout(after) == layout(before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert_same(state, before)


PARAMS: dict[str, Any] = {
    "an integer leaf": lambda p: {**p, "emb": jnp.ones((16, 8), int)},
    "a bool leaf": lambda p: {**p, "emb": jnp.ones((16, 8), bool)},
    "a string": lambda p: {**p, "emb": "float32"},
    "a type": lambda p: {**p, "emb": float},
    "an object": lambda p: {**p, "emb": object()},
    "a function": lambda p: {**p, "emb": jnp.sin},
    "a key": lambda p: {**p, "emb": jax.random.key(0)},
    "strings in an array": lambda p: {**p, "emb": np.array(["a"])},
}


@pytest.mark.parametrize("spoil", PARAMS.values(), ids=PARAMS)
@each_case
def test_bad_parameters_are_an_error_of_init_that_names_the_leaf(
    case: Case, spoil: Any
):
    params = case.params(jnp.float32)
    tx, bad = _without_optax(case, params), spoil(params)
    if case.whole_numbers and getattr(bad["emb"], "dtype", None) in (jnp.int32, bool):
        tx.init(bad)
        return
    with pytest.raises(TypeError, match="leaf at 'emb'") as caught:
        tx.init(bad)
    assert_ours(caught.value)


@each_case
def test_missing_parameters_are_named(case: Case):
    params = case.params(jnp.float32)
    tx = _without_optax(case, params)
    state, extra = tx.init(params), case.extra_args(params)
    try:
        tx.update(gradients(params), state, **extra)
    except ValueError as error:
        assert "needs params in update" in str(error)
        assert_ours(error)


KERNELS = {
    name: case
    for name, case in CASES.items()
    if case.factory.__module__.startswith(ot.transforms.__name__)
}


@pytest.mark.parametrize("case", KERNELS.values(), ids=KERNELS)
def test_what_is_no_state_is_refused(case: Case):
    params = case.params(jnp.float32)
    tx, extra = _without_optax(case, params), case.extra_args(params)
    for state in (
        None,
        3,
        params,
        {},
        (jnp.ones(2),),
        optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)),
    ):
        with pytest.raises(TypeError, match="needs a state") as caught:
            tx.update(gradients(params), state, params, **extra)
        assert_ours(caught.value)
