"""Rows of bad input: wrong values by kind, and arguments that functions share."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)
NAN = float("nan")
INF = float("inf")


class Row(NamedTuple):
    """Values of one argument that raise an error whose message has this in it."""

    argument: str
    values: Any
    error: type[Exception]
    message: str


@dataclasses.dataclass(frozen=True)
class Entry:
    """A public name: how to use it, arguments that work, and those that do not."""

    call: Callable[..., Any]
    good: dict[str, Any]
    bad: list[Row]


def params() -> Any:
    return {"emb": jnp.ones((4, 2)), "w": jnp.full((2, 3), 0.5), "b": jnp.ones(3)}


def mask() -> Any:
    return {"emb": jnp.arange(8).reshape(4, 2) < 3, "w": True, "b": False}


# Values that are no number, no key, no array, no name.
NOT_A_NUMBER = ["0.5", None, True, np.True_, [0.5], {}, 1j, np.array("x"), np.ones(2)]
NOT_A_NUMBER += [jnp.ones(1), object(), np.complex64(1), [1, [2]], jax.random.key(0)]
NOT_AN_INT = ["2", None, True, 2.0, [2], np.float32(2), jnp.ones((), int), 1j]
NOT_A_FLAG = ["yes", None, 1, 0.0, [True], np.ones(1, bool)]
NOT_INNER = [None, "adam", optax.adam, 1, lambda x: x, (), optax.EmptyState()]
NOT_A_KEY = [None, 1.5, "0", True, [0, 1], np.zeros(2, int), np.zeros((2, 2), "u4"), ()]
NOT_A_DTYPE = [3, "no such", object(), [jnp.float32]]
NOT_A_SELECTOR = [3, 1.5, {"emb": "yes"}, {}, (), [None], np.ones(3)]
BELOW_OR_NOT_FINITE = [-1.0, -1, NAN, INF, -INF, np.float32(-1), jnp.float32(NAN)]
OUTSIDE_0_1 = [*BELOW_OR_NOT_FINITE, 1.5, 10**400, 2]
RATE = "must be a number or a schedule"
NUMBER = "must be a number, got"


def number(name: str, outside: list[Any], span: str) -> list[Row]:
    """Rows of an argument that is a number in a range."""
    return [
        Row(name, NOT_A_NUMBER, TypeError, f"{name} {NUMBER}"),
        Row(name, outside, ValueError, f"{name} must lie in {span}"),
    ]


def rate(name: str, outside: list[Any], span: str) -> list[Row]:
    """Rows of an argument that is a number in a range, or a schedule."""
    wrong = [value for value in NOT_A_NUMBER if not callable(value)]
    return [
        Row(name, wrong, TypeError, f"{name} {RATE}"),
        Row(name, outside, ValueError, f"{name} must {span}"),
    ]


def size(name: str, *, shown: str = "", schedule: bool = False) -> list[Row]:
    """Rows of an argument that is a number of at least zero."""
    shown = shown or name
    what, wide = (RATE, "at least 0") if schedule else (NUMBER, "at least 0 and finite")
    return [
        Row(name, NOT_A_NUMBER, TypeError, f"{shown} {what}"),
        Row(name, BELOW_OR_NOT_FINITE, ValueError, f"{shown} must be {wide}"),
    ]


def flag(name: str) -> Row:
    return Row(name, NOT_A_FLAG, TypeError, f"{name} must be True or False")


def option(name: str) -> Row:
    wrong = ["", "no", None, 3, ["element"], np.array(["element"]), 0.5, True]
    return Row(name, wrong, ValueError, f"{name} must be one of")


def whole(name: str, *, optional: bool = False) -> list[Row]:
    wrong = [value for value in NOT_AN_INT if not optional or value is not None]
    return [
        Row(name, wrong, TypeError, f"{name} must be an int"),
        Row(name, [0, -1, np.int64(-3)], ValueError, f"{name} must be at least 1"),
        Row(name, [2**31, 10**400], ValueError, f"{name} must be below 2"),
    ]


def selector(name: str, shown: str = "") -> list[Row]:
    shown = shown or name
    return [
        Row(name, NOT_A_SELECTOR, TypeError, f"{shown} must be a pattern"),
        Row(name, ["nothing", re.compile("^$")], ValueError, "matches no leaf"),
        Row(name, ["(", "*"], ValueError, "is not a regular expression"),
        Row(name, [lambda path, leaf: 1], TypeError, f"{shown} must give a bool"),
        Row(name, [{"emb": True}], ValueError, f"{shown} says nothing about"),
        Row(name, [{"x": True}], ValueError, f"{shown} has entries where"),
    ]


STACKED = [
    *selector("stacked"),
    Row("stacked", [{"emb": 2}, {"b": -2}], ValueError, "and so no layer axis"),
    Row("stacked", [{"x": 0}], ValueError, "patterns that match no leaf"),
    Row("stacked", [{"(": 0}], ValueError, "is not a regular expression"),
    Row("stacked", [{1: 0}], TypeError, "stacked must map str to int"),
]
KEY = [
    Row("key", NOT_A_KEY, TypeError, "key must be an int"),
    Row(
        "key", [-1, 2**64, jax.random.split(jax.random.key(0))], ValueError, "key must"
    ),
]
KEEP_RATE = rate("keep_rate", [0.0, *OUTSIDE_0_1], r"lie in \(0, 1\]")
MASK = [
    Row("mask", [None, {}, []], ValueError, "mask is empty"),
    Row("mask", ["emb", 1, {"emb": 1.0}], TypeError, "mask must hold Python bools"),
    Row("mask", [{"emb": np.ones((4, 2))}], TypeError, "'emb' is float64"),
    Row("mask", [{"emb": True}], ValueError, "mask says nothing about the leaf at 'b'"),
    Row("mask", [{**mask(), "x": True}], ValueError, "match no parameter: 'x'"),
    Row("mask", [np.ones((4, 2), bool)], ValueError, "there the parameters have"),
    Row(
        "mask",
        [{**mask(), "emb": np.ones((2, 4), bool)}],
        ValueError,
        r"mask at 'emb': expected shape \(4, 2\), got \(2, 4\); only axes of size 1",
    ),
    Row(
        "mask",
        [{**mask(), "emb": np.ones(n, bool)} for n in (1, 2, 4)],
        ValueError,
        r"expected shape \(4, 2\), got \(\d,\); write out its axes of size 1",
    ),
    Row(
        "mask",
        [{**mask(), "emb": np.ones((), bool)}],
        ValueError,
        r"got \(\); for all or nothing of a leaf give True or False",
    ),
]
INNER = Row("inner", NOT_INNER, TypeError, "inner must be an optax.Gradient")
MU_DTYPE = [
    Row("mu_dtype", NOT_A_DTYPE, TypeError, "mu_dtype must be a dtype"),
    Row("mu_dtype", [int, "int8", bool, complex], ValueError, "be a floating dtype"),
]
# Relaxations that Lion and Tiger share.
RELAXED = [
    *rate("exponent", OUTSIDE_0_1, r"lie in \[0, 1\]"),
    *size("dead_zone"),
]
OPEN = r"\(0, 1\)"
ENDS = [0.0, 1.0, *OUTSIDE_0_1]
LION = [*number("b1", ENDS, OPEN), *number("b2", ENDS, OPEN), *MU_DTYPE, *RELAXED]
LION += [flag("cautious"), flag("skip_nonfinite")]
TIGER = [*number("beta", ENDS, OPEN), *MU_DTYPE, *RELAXED]
TIGER += whole("accumulate_steps", optional=True)
LEARNING_RATE = size("learning_rate", schedule=True)
DECAY = size("weight_decay", schedule=True)
DROPOUT = [*KEEP_RATE, *KEY, flag("rescale"), option("granularity")]
DROPOUT += [option("distribution")]
AXIS_NAME = [
    Row("axis_name", [1, ["x", 1], {"x": 0}], TypeError, "axis_name must be names"),
    Row("axis_name", [["x", "x"]], ValueError, "axis_name must name an axis once"),
]
DROPOUT += AXIS_NAME


RAGGED = [[1.0], [1.0, 2.0]]
BATCH = {"x": np.ones((4, 2), np.float32)}
BATCHES = [
    Row("batches", [3, "data", b"data"], TypeError, "batches must be one pytree"),
    Row("batches", [[], iter(())], ValueError, "batches is empty"),
    Row("batches", [None, {}, [{}]], ValueError, "holds no arrays"),
    Row("batches", [{"x": np.float32(1)}], ValueError, "leaf at 'x' is a scalar"),
    Row("batches", [{"x": np.ones((0, 2), "f4")}], ValueError, "holds no examples"),
    Row("batches", [{"x": np.array(["a"])}], TypeError, "must hold arrays of numbers"),
    Row(
        "batches",
        [{"x": np.ones((2, 2), "f4"), "y": np.ones(3, "f4")}],
        ValueError,
        "leaves of different leading sizes",
    ),
    Row("batches", [[BATCH, {"y": BATCH["x"]}]], ValueError, "batch 1 is laid out as"),
]
