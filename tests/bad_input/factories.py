"""Of the transformations: what the factory or `init` must refuse."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import optaxtricks
from tests.bad_input.rows import (
    AXIS_NAME,
    BELOW_OR_NOT_FINITE,
    DECAY,
    DROPOUT,
    ENDS,
    INNER,
    KEEP_RATE,
    KEY,
    LEARNING_RATE,
    LION,
    MASK,
    NAN,
    NOT_A_DTYPE,
    NOT_A_NUMBER,
    NUMBER,
    OPEN,
    OUTSIDE_0_1,
    RAGGED,
    RATE,
    STACKED,
    TIGER,
    Entry,
    Row,
    flag,
    mask,
    number,
    option,
    ot,
    params,
    rate,
    selector,
    size,
    whole,
)


def first(factory: Any) -> Callable[..., Any]:
    """Builds the transformation and makes its first state."""
    return lambda **arguments: factory(**arguments).init(params())


def factory(name: str, good: dict[str, Any], bad: list[Row]) -> dict[str, Entry]:
    return {name: Entry(first(getattr(ot, name)), good, bad)}


INSIDE: Any = optaxtricks.scale_by_lion()
FACTORIES: dict[str, Entry] = {
    **factory("gradient_dropout", {"keep_rate": 0.5, "key": 0}, DROPOUT),
    **factory("update_dropout", {"keep_rate": 0.5, "key": 0}, DROPOUT),
    **factory(
        "child_tuning_f",
        {"inner": INSIDE, "keep_rate": 0.5, "key": 0},
        [INNER, *KEEP_RATE, *KEY, *AXIS_NAME],
    ),
    **factory("keep_entries", {"mask": mask()}, [*MASK, flag("rescale")]),
    **factory("compact_entries", {"inner": INSIDE, "mask": mask()}, [INNER, *MASK]),
    **factory(
        "child_tuning_d",
        {"inner": INSIDE, "mask": mask()},
        [INNER, *MASK, flag("rescale"), flag("decay_frozen")],
    ),
    **factory("scale_by_lion", {}, LION),
    **factory(
        "lion",
        {"learning_rate": 0.1},
        [
            *LION,
            *LEARNING_RATE,
            *DECAY,
            Row("mask", ["emb", 1, {"emb": 0.5}], TypeError, "mask must be None"),
            Row(
                "mask",
                [True, np.False_, jnp.asarray(True)],
                TypeError,
                "alone. Under optax.i",
            ),
        ],
    ),
    **factory("scale_by_tiger", {}, [*TIGER, flag("skip_nonfinite")]),
    **factory(
        "tiger",
        {"learning_rate": 0.1},
        [
            *TIGER,
            *LEARNING_RATE,
            *DECAY,
            *size("scalar_factor"),
            *size("rms_floor"),
            flag("relative"),
            Row("shrink", ["1", True, [0.5]], TypeError, f"shrink {NUMBER}"),
            Row("shrink", ENDS, ValueError, rf"shrink must lie in {OPEN}"),
            *selector("embeddings"),
            *selector("vectors"),
            *selector("shrink_to_one"),
            Row("embeddings", ["^b$"], ValueError, r"'\^b\$' choose no matrix"),
        ],
    ),
    **factory(
        "mixed_sign",
        {"learning_rate": 0.1, "embeddings": "emb"},
        [
            *LEARNING_RATE,
            Row("adam_learning_rate", ["1", True, [1.0]], TypeError, RATE),
            Row("adam_learning_rate", [-1.0, NAN], ValueError, "at least 0"),
            option("sign"),
            *selector("embeddings"),
            Row("unknown", [1], TypeError, "unexpected keyword argument 'unknown'"),
            Row("b1", [2.0], ValueError, "b1 must lie in"),
        ],
    ),
    **factory("round_stochastically", {"key": 0}, KEY),
    **factory("scale_by_param_rms", {}, [*size("floor"), *selector("rows")]),
    **factory(
        "shrink_nonfinite",
        {"inner": INSIDE},
        [INNER, *number("shrink", ENDS, OPEN), *selector("to_one")],
    ),
    **factory(
        "at_window_end",
        {"inner": INSIDE, "accumulate_steps": 2},
        [INNER, *whole("accumulate_steps")],
    ),
    **factory(
        "lazy_rows",
        {"inner": INSIDE, "tables": "emb"},
        [INNER, option("moments"), *selector("tables")],
    ),
}


FACTORIES |= {
    **factory(
        "two_timescale",
        {
            "inner": INSIDE,
            "learning_rate": 0.1,
            "fast": "emb",
            "fast_learning_rate": 0.2,
        },
        [
            INNER,
            *LEARNING_RATE,
            *size("fast_learning_rate", schedule=True),
            *selector("fast"),
        ],
    ),
    **factory("ladder", {"inner": INSIDE, "side": "emb"}, [INNER, *selector("side")]),
    **factory(
        "magma",
        {"inner": INSIDE, "key": 0},
        [
            INNER,
            *KEY,
            *KEEP_RATE,
            *number("b1", ENDS, OPEN),
            *number("smoothing", ENDS, OPEN),
            Row("temperature", NOT_A_NUMBER, TypeError, f"temperature {NUMBER}"),
            Row("temperature", [0, *BELOW_OR_NOT_FINITE], ValueError, "be positive"),
        ],
    ),
    **factory(
        "monitor_groups",
        {"labels": "all"},
        [
            Row("name", [1, None, b"x"], TypeError, "name must be a string"),
            Row("name", [""], ValueError, "name must not be empty"),
            Row("labels", [3, [1], {"emb": 1}], TypeError, "labels must be strings"),
            Row("labels", [None, {"emb": "a"}], ValueError, "labels says nothing"),
            Row("labels", [lambda tree: 3], TypeError, "labels must be strings"),
            *STACKED,
            Row("stacked", ["emb"], ValueError, "must have leaves of one number of"),
        ],
    ),
    **factory("per_layer", {"inner": INSIDE, "stacked": "emb"}, [INNER, *STACKED]),
    **factory(
        "scale_by_path",
        {"factors": {"emb": 0.5}},
        [
            Row("factors", [None, "a", [("a", 1)]], TypeError, "factors must map"),
            Row("factors", [{}], ValueError, "factors must hold at least one"),
            Row("factors", [{1: 0.5}], TypeError, "factors must have str keys"),
            Row("factors", [{"emb": "x"}, {"emb": None}], TypeError, NUMBER),
            Row("factors", [{"emb": -1.0}, {"emb": NAN}], ValueError, "at least 0"),
            Row("factors", [{"(": 1.0}], ValueError, "is not a regular expression"),
            Row("factors", [{"x": 1.0}], ValueError, "match no leaf: 'x'"),
            Row("factors", [{"w": [1.0, 2.0]}], ValueError, "'w' is no stack"),
            Row("factors", [{"w": ["x"]}, {"w": RAGGED}], TypeError, "or a vector of"),
            Row("factors", [{"w": [-1.0]}, {"w": [NAN]}], ValueError, "at least 0"),
            *STACKED,
        ],
    ),
    **factory(
        "scale_by_depth",
        {"decay": 0.5, "stacked": "emb"},
        [
            *number("decay", [0.0, *OUTSIDE_0_1], r"\(0, 1\]"),
            Row("decay", [lambda step: 0.5], TypeError, f"decay {NUMBER}"),
            *size("gap"),
            Row("gap", [lambda step: 1], TypeError, f"gap {NUMBER}"),
            Row("layers", [3, None, ["w"], b"w"], TypeError, "layers must be a patt"),
            Row("layers", ["(", "*"], ValueError, "is not a regular expression"),
            Row("layers", ["", "w", r"\d"], ValueError, "must have a group"),
            Row("layers", ["(w)", "(x)?"], ValueError, "must be a whole number"),
            *selector("first"),
            *selector("top"),
            *selector("last"),
            *STACKED,
            Row("stacked", [None], ValueError, "finds no layer"),
        ],
    ),
    **factory(
        "ema_params",
        {"decay": 0.9},
        [
            *rate("decay", OUTSIDE_0_1, r"lie in \[0, 1\]"),
            flag("debias"),
            *whole("every", optional=True),
            Row("every", [jnp.ones((), int)], TypeError, r'static_args=\("every",\)'),
            Row("dtype", [jnp.ones(())], TypeError, r'static_args=\("dtype",\)'),
            Row("dtype", NOT_A_DTYPE, TypeError, "dtype must be a dtype"),
            Row("dtype", [int, "int8"], ValueError, "dtype must be a floating dtype"),
        ],
    ),
}
