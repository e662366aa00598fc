"""Optax's own tests of contributed optimizers and of shardings, run over ours.

They come inside Optax's wheel, though in modules that are not public: there is no other
door to them, and to copy them would be to test our copy. Every test method is taken
with all the parameters (targets, dtypes) that Optax gives it for one optimizer of its
own, which ours then replace. A wheel without the modules, or with another way of
keeping parameters, is a skip that says so.
"""

import importlib
import inspect
import os
import re
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
import pytest

import optaxtricks as ot

pytestmark = pytest.mark.slow
Rate = optax.ScalarOrSchedule


def lion(learning_rate: Rate) -> Any:
    return ot.lion(learning_rate, weight_decay=1e-4)


def tiger(learning_rate: Rate) -> Any:
    return ot.tiger(learning_rate, weight_decay=1e-4)


def tiger_window(learning_rate: Rate) -> Any:
    return ot.tiger(learning_rate, weight_decay=1e-4, accumulate_steps=2)


def mixed_sign(learning_rate: Rate) -> Any:
    # The only leaf, or the first of several; Lion has the rest.
    return ot.mixed_sign(learning_rate, embeddings="^0?$", weight_decay=1e-4)


def child_tuning_d(learning_rate: Rate) -> Any:
    return ot.child_tuning_d(optax.adam(learning_rate), True)


def child_tuning_f(learning_rate: Rate) -> Any:
    return ot.child_tuning_f(optax.adam(learning_rate), 0.5, key=0)


def compact_entries(learning_rate: Rate) -> Any:
    return ot.compact_entries(optax.adam(learning_rate), True)


def dropped_gradients(learning_rate: Rate) -> Any:
    dropout = ot.gradient_dropout(0.9, key=1, distribution="gaussian")
    return optax.chain(dropout, optax.adam(learning_rate))


def dropped_updates(learning_rate: Rate) -> Any:
    dropout = ot.update_dropout(0.5, key=2, granularity="row")
    return optax.chain(optax.adam(learning_rate), dropout)


def lazy_rows(learning_rate: Rate) -> Any:
    return ot.lazy_rows(optax.adam(learning_rate), tables=".*")


def lazy_rows_frozen(learning_rate: Rate) -> Any:
    return ot.lazy_rows(optax.adam(learning_rate), tables=".*", moments="freeze")


def lazy_lion(learning_rate: Rate) -> Any:
    return ot.lazy_rows(lion(learning_rate), tables=".*")


def shrink_nonfinite(learning_rate: Rate) -> Any:
    return ot.shrink_nonfinite(optax.adam(learning_rate))


def at_window_end(learning_rate: Rate) -> Any:
    return ot.at_window_end(optax.adam(learning_rate), accumulate_steps=2)


# Sign methods circle the minimum at the distance of a step; Adam comes to rest.
OURS: dict[str, tuple[Callable[..., Any], float]] = {
    "our lion": (lion, 1e-3),
    "our tiger": (tiger, 2e-3),
    "our tiger, windows": (tiger_window, 2e-3),
    "our mixed_sign": (mixed_sign, 1e-3),
    "our child_tuning_d": (child_tuning_d, 1e-2),
    "our child_tuning_f": (child_tuning_f, 1e-2),
    "our compact_entries": (compact_entries, 1e-2),
    "our gradient_dropout": (dropped_gradients, 1e-2),
    "our update_dropout": (dropped_updates, 1e-2),
    "our lazy_rows": (lazy_rows, 1e-2),
    "our lazy_rows, frozen": (lazy_rows_frozen, 1e-2),
    "our lazy_rows, lion": (lazy_lion, 1e-3),
    "our shrink_nonfinite": (shrink_nonfinite, 1e-2),
    "our at_window_end": (at_window_end, 1e-2),
}
# (part of a test's id, name): why it cannot be run.
SKIPS: dict[tuple[str, str], str] = {}
# Parameters that say which optimizer is tested.
OPTIMIZER = re.compile("opt|wrapper").match
Test = tuple[types.FunctionType, dict[str, Any]]


def _module(name: str) -> Any:
    """A test module of Optax, or None where the wheel has none."""
    flags = os.environ.get("XLA_FLAGS", "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        return None
    finally:
        os.environ["XLA_FLAGS"] = flags  # one of the modules writes its own


def _tests(case: type, chosen: Callable[[Any], bool]) -> Iterator[tuple[str, Test]]:
    """Id, function and parameters of all tests of a class for one chosen optimizer.

    absl makes a method of every set of parameters, and keeps the function it wraps.
    """
    for bound in vars(case).values():
        if not inspect.isfunction(bound) or not hasattr(bound, "__wrapped__"):
            continue
        given = inspect.getclosurevars(bound).nonlocals.get("testcase_params")
        if given is not None and chosen(given):
            function = inspect.unwrap(bound)
            names = list(inspect.signature(function).parameters)[1:]
            if not isinstance(given, dict):
                given = dict(zip(names, given, strict=True))
            rest = [value for key, value in given.items() if not OPTIMIZER(key)]
            shown = [getattr(x, "__name__", str(x)) for x in rest]
            yield "-".join([function.__name__, *shown]), (function, given)


COMMON = _module("optax.contrib._common_test")
SHARDING = _module("optax._src.sharding_test")
PLAIN = {"opt_name": "acprop", "wrapper_name": None}
CONTRIB: dict[str, Test] = {}
if COMMON is not None:
    CONTRIB = dict(
        _tests(
            COMMON.ContribTest,
            lambda given: isinstance(given, dict) and given.items() >= PLAIN.items(),
        )
    )
LAYOUTS: dict[str, Test] = {}
if SHARDING is not None:
    sgd = SHARDING.OPTIMIZERS["sgd"]
    LAYOUTS = dict(
        _tests(
            SHARDING.ShardingTest,
            lambda given: any(
                x is sgd for x in getattr(given, "values", given.__iter__)()
            ),
        )
    )


@pytest.fixture(autouse=True)
def as_optax_runs_them() -> Iterator[None]:
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("test", CONTRIB or [None])
def test_contributed(
    name: str, test: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if test is None:
        pytest.skip("this Optax has no contrib/_common_test.py with such parameters")
    for (part, skipped), reason in SKIPS.items():
        if part in test and skipped == name:
            pytest.skip(reason)
    function, given = CONTRIB[test]
    factory, rate = OURS[name]
    factories = {name: factory}
    monkeypatch.setattr(COMMON, "_get_opt_factory", factories.__getitem__)
    given = {**given, "opt_name": name, "opt_kwargs": {"learning_rate": rate}}
    function(COMMON.ContribTest(), **given)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("test", LAYOUTS or [None])
def test_shardings(
    name: str, test: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if test is None:
        pytest.skip("this Optax has no sharding_test.py with such parameters")
    function, _ = LAYOUTS[test]
    # Its guard compares versions as strings, and takes 0.10 for older than 0.7.2.
    monkeypatch.setattr(jax, "__version__", "1.0")
    factory, rate = OURS[name]
    function(SHARDING.ShardingTest(), optimizer=factory(rate))


def test_every_test_of_the_class_is_run() -> None:
    if COMMON is None:
        pytest.skip("this Optax has no contrib/_common_test.py")
    wrapped = {
        inspect.unwrap(bound).__name__
        for name, bound in vars(COMMON.ContribTest).items()
        if name.startswith("test")
    }
    assert {function.__name__ for function, _ in CONTRIB.values()} == wrapped
