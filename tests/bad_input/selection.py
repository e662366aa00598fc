"""Of functions on trees, and of the gradients of tables."""

import jax.numpy as jnp
import numpy as np

from tests.bad_input.rows import (
    AXIS_NAME,
    KEEP_RATE,
    KEY,
    NAN,
    NOT_AN_INT,
    OUTSIDE_0_1,
    RAGGED,
    STACKED,
    Entry,
    Row,
    number,
    option,
    ot,
    params,
    selector,
)

STRINGS = {"emb": "x", "w": jnp.ones(2)}
TREE = {"tree": params()}
SCORES = {"scores": params(), "keep_fraction": 0.5, "scope": "leaf"}
ROWS = {"indices": [0, 2], "values": jnp.ones((2, 3)), "num_rows": 4}
NUM_ROWS = [
    Row("num_rows", NOT_AN_INT, TypeError, "num_rows must be an int"),
    Row("num_rows", [0, -1, 2**31], ValueError, "num_rows must lie in"),
]
FLOATS = "cotangents must be an array|rows must be floats"
SELECTION: dict[str, Entry] = {
    "dropout_mask": Entry(
        ot.dropout_mask,
        {**TREE, "keep_rate": 0.5, "key": 0, "step": 0},
        [
            *KEEP_RATE,
            *KEY,
            option("granularity"),
            Row("step", [None, 0.5, "1", [1], True, {}], TypeError, "step must be a"),
            Row("step", [-1, 2**31], ValueError, r"step must lie in \[0, 2\*\*31\)"),
            Row(
                "tree",
                [STRINGS, {"emb": object()}],
                TypeError,
                "without a shape: 'emb'",
            ),
            *STACKED,
            *AXIS_NAME,
            Row("keep_rate", [lambda step: None], ValueError, "must give a scalar"),
            Row("keep_rate", [lambda step: "x"], ValueError, "must give a scalar"),
        ],
    ),
    "select": Entry(ot.select, {**TREE, "selector": "emb"}, selector("selector")),
    "split": Entry(ot.split, {**TREE, "selector": "emb"}, selector("selector")),
    "merge": Entry(
        ot.merge,
        {"selected": {"a": 1.0, "b": None}, "rest": {"a": None, "b": 2.0}},
        [
            Row("rest", [{"a": None}, 3.0, None, [1]], ValueError, "equal structures"),
            Row("rest", [{"a": 1.0, "b": 2.0}], ValueError, "both trees: 'a'"),
        ],
    ),
    "label_by_path": Entry(
        lambda **arguments: ot.label_by_path(**arguments)(params()),
        {"rules": {"emb": "a"}, "default": "b"},
        [
            Row("rules", [None, "emb", [("a", "b")]], TypeError, "rules must map"),
            Row("rules", [{}], ValueError, "rules must hold at least one"),
            Row("rules", [{1: "a"}, {"emb": 1}], TypeError, "rules must map str to"),
            Row("rules", [{"(": "a"}], ValueError, "is not a regular expression"),
            Row("rules", [{"x": "a"}], ValueError, "match no leaf: 'x'"),
            Row("default", [1, ["a"], b"a"], TypeError, "default must be a string"),
            Row("default", [None], ValueError, "no pattern covers 'b', 'w'"),
        ],
    ),
    "PathLabels": Entry(
        lambda tree: ot.label_by_path({"emb": "a"})(tree),
        {"tree": {"emb": 1.0}},
        [
            Row("tree", [{"w": 1.0}, [1.0]], ValueError, "no pattern covers"),
            Row("tree", [params()], ValueError, "no pattern covers 'b', 'w'"),
        ],
    ),
    "top_fraction_mask": Entry(
        ot.top_fraction_mask,
        SCORES,
        [
            *number("keep_fraction", [0.0, *OUTSIDE_0_1], r"\(0, 1\]"),
            option("scope"),
            option("rule"),
            *selector("where"),
            *STACKED,
            Row("scores", [{}, None, {"a": None}], ValueError, "no eligible entry"),
            Row("scores", [{"a": jnp.zeros(0)}], ValueError, "all of them are empty"),
            Row("scores", [STRINGS], TypeError, "the leaf at 'emb' is a str"),
            Row("scores", [{"a": jnp.arange(3)}], TypeError, "'a' has dtype int32"),
            Row("scores", [{"a": jnp.ones(1, complex)}], TypeError, "'a' has dtype co"),
            Row("scores", [{"a": jnp.float32(NAN)}], ValueError, "'a' has 1 NaN"),
            Row("scores", [{"a": -jnp.ones(2)}], ValueError, "'a' has 0 NaN and 2"),
            Row("scores", [{"a": np.ones(2)}], ValueError, "'a' have dtype float64"),
        ],
    ),
    "RowSparse": Entry(
        ot.RowSparse,
        ROWS,
        [
            *NUM_ROWS,
            Row("indices", [None, "x", RAGGED], TypeError, "indices must be an array"),
            Row("indices", [[0.5, 1.0]], TypeError, "indices must be integers"),
            Row("indices", [[0, 5], [-1, 0]], ValueError, r"must lie in \[0, 4\]"),
            Row("indices", [[0], [[0, 1]], 0], ValueError, "indices of shape"),
            Row("values", [None, "x", RAGGED], TypeError, "values must be an array"),
            Row("values", [np.ones((2, 3), int)], TypeError, "rows must be floats"),
            Row("values", [jnp.ones((3, 3)), 1.0], ValueError, "indices of shape"),
        ],
    ),
    "RowSparse.from_lookup": Entry(
        ot.RowSparse.from_lookup,
        {"ids": [0, 2], "cotangents": jnp.ones((2, 3)), "num_rows": 4},
        [
            *NUM_ROWS,
            Row("ids", [None, "x", RAGGED], TypeError, "ids must be an array"),
            Row("ids", [[0.5, 1.0]], TypeError, "ids must be integers"),
            Row("ids", [[0, 5], [-1, 0]], ValueError, r"ids must lie in \[0, 4\]"),
            Row("ids", [[0], [[0, 1]]], ValueError, "cotangents must have the shape"),
            Row("cotangents", [None, "x", np.ones((2, 3), int)], TypeError, FLOATS),
            Row("cotangents", [1.0, jnp.ones((3, 3))], ValueError, "cotangents must"),
        ],
    ),
}
