"""Of what reads batches of data, or cuts networks."""

import jax.numpy as jnp
import numpy as np

from tests.bad_input.rows import (
    BATCH,
    BATCHES,
    INF,
    NAN,
    NOT_A_SELECTOR,
    NUMBER,
    OUTSIDE_0_1,
    Entry,
    Row,
    flag,
    number,
    option,
    ot,
)

GROUP = ot.PruneGroup({"w": 1})
BACKBONE = {"w": np.ones((4, 6)), "b": np.ones(3)}
STACKED = [
    Row("stacked", NOT_A_SELECTOR, TypeError, "stacked must be a pattern"),
    Row("stacked", ["nothing"], ValueError, "stacked 'nothing' matches no leaf"),
    Row("stacked", [{"nothing": 0}], ValueError, "patterns that match no leaf"),
    Row("stacked", [{1: 0}], TypeError, "stacked must map str to int"),
]
FISHER = {
    "log_likelihood": lambda params, example: -(params["w"] * example["x"]).sum(),
    "params": {"w": jnp.ones(2)},
    "batches": BATCH,
}
CHANNELS: dict[str, Entry] = {
    "fisher_information": Entry(
        ot.fisher_information,
        FISHER,
        [
            *BATCHES,
            Row("log_likelihood", [None, 1, "f"], TypeError, "must be callable"),
            Row("log_likelihood", [lambda p, e: p["w"]], ValueError, "return a scalar"),
            Row("log_likelihood", [lambda p, e: None], ValueError, "got NoneType"),
            Row("log_likelihood", [lambda p, e: e["x"].sum() > 0], TypeError, "floats"),
            Row(
                "log_likelihood",
                [lambda p, e: p["w"].sum() * NAN],
                ValueError,
                "Fisher information is not finite at 'w'",
            ),
            Row("params", [{}, None, []], ValueError, "params has no leaves"),
            Row("params", [{"w": jnp.arange(2)}], TypeError, "'w' has dtype int32"),
            Row("params", [{"w": "x"}], TypeError, "leaf at 'w' is a str"),
            Row("params", [{"w": jnp.ones(2, complex)}], TypeError, "complex numbers"),
            option("labels"),
            option("per"),
            Row(
                "power", [0, 3, 2.0, True, None, "2", [2]], ValueError, "power must be"
            ),
            Row("clip_norm", [1.0], ValueError, "clip_norm needs per='batch'"),
            Row("clip_norm", [0.0, -1.0, NAN, INF], ValueError, "clip_norm must be"),
            Row("clip_norm", ["1", True, [1.0]], TypeError, f"clip_norm {NUMBER}"),
            Row("stacked", ["w", {"w": 0}], ValueError, "stacked needs clip_norm"),
            Row("where", ["nothing"], ValueError, "where 'nothing' matches no leaf"),
            Row("where", [3, 1.5, {"w": "yes"}], TypeError, "where must be a pattern"),
            Row("microbatch_size", [0, -2], ValueError, "microbatch_size must be at"),
            Row("microbatch_size", ["2", 2.0, True], TypeError, "must be an int"),
            Row("key", [0, "x"], ValueError, "key goes with labels='sampled'"),
            Row("labels", ["sampled"], ValueError, "labels='sampled' needs a key"),
            flag("progress"),
        ],
    ),
    "PruneGroup": Entry(
        ot.PruneGroup,
        {"members": {"w": 1}},
        [
            Row("members", [None, "w", ["w"]], TypeError, "members must map patterns"),
            Row("members", [{}], ValueError, "members must hold at least one"),
            Row("members", [{1: 0}], TypeError, "members must map str to int"),
            Row("members", [{"w": 0.5}, {"w": True}], TypeError, "to an int axis"),
            Row("members", [{"(": 0}], ValueError, "is not a regular expression"),
            Row("followers", ["w", {"b": "0"}], TypeError, "followers must map"),
            Row("heads", ["2", 2.0, True], TypeError, "heads must be an int"),
            Row("heads", [0, -1], ValueError, "heads must be at least 1"),
        ],
    ),
    "structural_prune": Entry(
        ot.structural_prune,
        {
            "backbone": BACKBONE,
            "importance": BACKBONE,
            "groups": [GROUP],
            "keep_fraction": 0.5,
        },
        [
            *number("keep_fraction", [0.0, *OUTSIDE_0_1], r"\(0, 1\]"),
            Row("groups", [GROUP, None, [{"w": 1}], "w"], TypeError, "groups must be"),
            Row("groups", [[], ()], ValueError, "groups must hold at least one"),
            Row("importance", [{}, {"w": None}, None], ValueError, "no leaf at 'w'"),
            Row("importance", [{"w": np.ones(3)}], ValueError, r"'w' has shape \(3,\)"),
            Row("importance", [{"w": np.full((4, 6), NAN)}], ValueError, "24 NaN"),
            Row("importance", [{"w": -BACKBONE["w"]}], ValueError, "24 negative"),
            Row("importance", [{"w": BACKBONE["w"] > 0}], TypeError, "of real numbers"),
            Row("importance", [{"x": np.ones(2)}], ValueError, "backbone has not: 'x'"),
            Row("backbone", [{}, None], ValueError, "backbone has not: 'b', 'w'"),
            *STACKED,
            Row("stacked", [{"w": 2}, {"b": -2}], ValueError, "so no layer axis"),
            Row("stacked", ["w", {"w": 1}], ValueError, "axis 1 is out of range for"),
        ],
    ),
}
