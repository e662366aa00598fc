"""Of what is there to be read or looked at."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from tests.bad_input.rows import (
    BELOW_OR_NOT_FINITE,
    INF,
    NAN,
    NOT_A_NUMBER,
    NUMBER,
    OUTSIDE_0_1,
    RAGGED,
    STACKED,
    Entry,
    Row,
    flag,
    mask,
    number,
    ot,
    params,
    selector,
    whole,
)

MONITORED: Any = optax.chain(*[ot.monitor_groups("all") for _ in range(2)])
NOT_A_TX = [None, "adam", optax.adam, 3, {}]
HISTORY = {"emb": [0.25, 0.5]}
AX = Row("ax", [3, "ax", object()], TypeError, "ax must be a matplotlib Axes")
CURVES = [
    AX,
    Row("history", [{}], ValueError, "history must hold at least one curve"),
    Row("history", [{"a": [1.0], "b": [1.0, 0.5]}], ValueError, "of one length"),
    Row("history", [{"a": ["x"]}, {"a": {}}], TypeError, "must hold real numbers"),
    Row("steps", [[1], [1, 2, 3], 0], ValueError, r"steps must have shape \(2,\)"),
]
AVERAGED: Any = ot.ema_params(0.5)
INSPECTION: dict[str, Entry] = {
    "averaged_params": Entry(
        ot.averaged_params,
        {"params": params(), "opt_state": AVERAGED.init(params())},
        [
            Row("params", [{}, None, {"emb": jnp.ones((4, 2))}], ValueError, "no such"),
            Row("params", [jnp.ones(2), 3, "x"], ValueError, "no such leaf"),
            Row(
                "params",
                [{**params(), "emb": jnp.ones((2, 2))}, {**params(), "emb": "x"}],
                ValueError,
                "at 'emb', of which opt_state has an average of shape",
            ),
            Row("opt_state", [None, {}, 3, "x", params()], ValueError, "no average"),
            Row(
                "opt_state",
                [(AVERAGED.init(params()),) * 2],
                ValueError,
                "two averages of the leaf at 'b'",
            ),
        ],
    ),
    "collapse_metrics": Entry(
        ot.collapse_metrics,
        {"z": jnp.ones((3, 2))},
        [
            Row("z", [None, "x", {}, RAGGED], TypeError, "z must be an array"),
            Row("z", [jnp.ones((3, 2), int)], TypeError, "must hold real floating"),
            Row("z", [jnp.ones((3, 2), complex)], TypeError, "got dtype complex64"),
            Row("z", [jnp.ones(3), jnp.ones((1, 3)), 1.0], ValueError, "z must have"),
        ],
    ),
    "cosine_ema_decay": Entry(
        lambda **arguments: ot.cosine_ema_decay(**arguments)(0),
        {"base": 0.9, "total_steps": 10},
        [*number("base", OUTSIDE_0_1, r"\[0, 1\]"), *whole("total_steps")],
    ),
    "embedding_health": Entry(
        ot.embedding_health,
        {"table": jnp.ones((3, 2)), "weight_decay": 0.1},
        [
            Row("weight_decay", NOT_A_NUMBER, TypeError, f"weight_decay {NUMBER}"),
            Row(
                "weight_decay",
                [0, *BELOW_OR_NOT_FINITE],
                ValueError,
                "weight_decay must be positive and finite",
            ),
            Row("table", [None, "x", {}, RAGGED], TypeError, "table must be an array"),
            Row("table", [jnp.ones((2, 2), int)], TypeError, "must hold real floating"),
            Row("table", [jnp.ones((), float)], ValueError, "table must have rows"),
            Row("table", [jnp.ones((0, 3))], ValueError, "table must have rows"),
        ],
    ),
    "metrics": Entry(
        ot.metrics,
        {"opt_state": ot.monitor_groups("all").init(params())},
        [Row("opt_state", [MONITORED.init(params())], ValueError, "two monitors")],
    ),
    "summary": Entry(
        ot.summary,
        {"tx": optax.sgd(0.1), "params": params()},
        [
            Row("tx", NOT_A_TX, TypeError, "tx must be"),
            Row("tx", [MONITORED], ValueError, "give each its own name"),
            Row("params", [{}, None, []], ValueError, "summary needs parameters"),
            Row("params", [{"emb": "x"}, {"emb": object()}], TypeError, "at 'emb'"),
            *STACKED,
        ],
    ),
    "state_shardings": Entry(
        ot.state_shardings,
        {"tx": optax.sgd(0.1), "params": params()},
        [
            Row("tx", NOT_A_TX, TypeError, "tx must be"),
            Row("params", [{}, None, []], ValueError, "needs parameters"),
            Row("params", [{"emb": np.ones(2)}, {"emb": "x"}], ValueError, "at 'emb'"),
        ],
    ),
    "side_value_and_grad": Entry(
        lambda loss_fn, side, has_aux=False: ot.side_value_and_grad(
            loss_fn, side=side, has_aux=has_aux
        )(params()),
        {"loss_fn": lambda tree: tree["emb"].sum(), "side": "emb"},
        [
            Row("loss_fn", [None, 1, "loss"], TypeError, "loss_fn must be callable"),
            flag("has_aux"),
            *selector("side"),
        ],
    ),
    "embedding_drift": Entry(
        ot.plots.embedding_drift,
        {"table": np.ones((3, 2)), "weight_decay": 0.1, "counts": [1, 2, 3]},
        [
            AX,
            Row("table", ["x", RAGGED, {}], TypeError, "table must hold real"),
            Row("table", [np.ones(3), np.ones((0, 2))], ValueError, "table must have"),
            Row("weight_decay", ["x", None, [1]], TypeError, "weight_decay must be a"),
            Row("weight_decay", [0.0, -1.0, NAN, INF], ValueError, "be positive"),
            Row("counts", ["x", RAGGED], TypeError, "counts must hold real numbers"),
            Row("counts", [[1, 2], 3], ValueError, "counts must have"),
        ],
    ),
    "kept_fraction": Entry(
        ot.plots.kept_fraction,
        {"mask": mask()},
        [
            AX,
            Row("mask", [{}, None], ValueError, "mask is empty"),
            Row("mask", [{"a": 1.0}, {"a": np.ones(2)}, "x"], TypeError, "mask must"),
        ],
    ),
    "update_rms": Entry(ot.plots.update_rms, {"history": HISTORY}, CURVES),
    "active_rows": Entry(
        ot.plots.active_rows,
        {"history": HISTORY},
        [*CURVES, Row("history", [{"a": [2.0, 0.0]}], ValueError, "must lie in")],
    ),
    "collapse": Entry(ot.plots.collapse, {"history": [{"std_ratio": 0.5}] * 2}, CURVES),
}
