"""Of what needs Flax."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from tests.bad_input.rows import (
    BATCH,
    BATCHES,
    NAN,
    NOT_A_DTYPE,
    NOT_A_SELECTOR,
    NUMBER,
    RAGGED,
    Entry,
    Row,
    flag,
    option,
    ot,
    whole,
)


def looked_up(ids: Any) -> Any:
    return ot.nn.RowEmbed(3, 2, rngs=nnx.Rngs(0))(ids)


def looked_up_linen(ids: Any) -> Any:
    embed = ot.nn.linen.RowEmbed(3, 2)
    table = jnp.ones((3, 2))
    return embed.apply({"params": {"embedding": table}}, ids)


def nnx_gradient(loss_fn: Any, model: Any, has_aux: Any = False) -> Any:
    return ot.nn.row_value_and_grad(loss_fn, has_aux=has_aux)(model, jnp.arange(2))


def linen_gradient(model: Any, loss_fn: Any, params: Any, has_aux: Any = False) -> Any:
    differ = ot.nn.linen.row_value_and_grad(model, loss_fn, has_aux=has_aux)
    return differ(params, jnp.arange(2))


IDS = [
    Row("ids", [jnp.ones(2), np.ones(2), 0.5], ValueError, "ids must be integers"),
    Row("ids", [None, "x", RAGGED], TypeError, "ids must be an array"),
]


def held(model: Any, optimizer: Any) -> None:
    with ot.nn.averaged(model, optimizer):
        pass


def optimizer_of(tx: Any) -> Any:
    return nnx.Optimizer(MODEL, tx, wrt=nnx.Param)


MODEL: Any = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
NOT_A_FUNCTION = [None, 1, "loss"]
TAPS = {"backbone_fn": lambda batch: batch["x"] + 1, "batches": BATCH}
MODULES: dict[str, Entry] = {
    "averaged": Entry(
        held,
        {"model": MODEL, "optimizer": optimizer_of(ot.ema_params(0.5))},
        [
            Row("model", [None, 3, {}, nnx.state(MODEL)], TypeError, "nnx.Module, got"),
            Row("model", [nnx.Linear(2, 3, rngs=nnx.Rngs(0))], ValueError, "of shape"),
            Row("optimizer", [None, optax.sgd(0.1), ()], TypeError, "be an nnx.Opt"),
            Row("optimizer", [optimizer_of(optax.sgd(0.1))], ValueError, "no average"),
        ],
    ),
    "half_swap": Entry(
        ot.nn.half_swap,
        {"x": jnp.ones((2, 4))},
        [
            Row(
                "x", [None, "x", {}, RAGGED, object()], TypeError, "x must be an array"
            ),
            Row("x", [1.0, jnp.ones(3), jnp.ones((4, 1))], ValueError, "of even size"),
        ],
    ),
    "RowEmbed": Entry(looked_up, {"ids": jnp.arange(2)}, IDS),
    "linen.RowEmbed": Entry(looked_up_linen, {"ids": jnp.arange(2)}, IDS),
    "row_value_and_grad": Entry(
        nnx_gradient,
        {
            "loss_fn": lambda model, ids: model(ids).sum(),
            "model": ot.nn.RowEmbed(3, 2, rngs=nnx.Rngs(0)),
        },
        [
            flag("has_aux"),
            Row("loss_fn", NOT_A_FUNCTION, TypeError, "loss_fn must be callable"),
            Row("model", [None, 3, {}, "m"], TypeError, "model must be one nnx.Module"),
            Row(
                "model", [nnx.Linear(2, 2, rngs=nnx.Rngs(0))], ValueError, "a RowEmbed"
            ),
        ],
    ),
    "linen.row_value_and_grad": Entry(
        linen_gradient,
        {
            "model": ot.nn.linen.RowEmbed(3, 2),
            "loss_fn": lambda apply, ids: apply(ids).sum(),
            "params": {"embedding": jnp.ones((3, 2))},
        },
        [
            flag("has_aux"),
            Row("loss_fn", NOT_A_FUNCTION, TypeError, "loss_fn must be callable"),
            Row("loss_fn", [lambda apply, ids: 0.0], ValueError, "calls a RowEmbed"),
            Row("model", [None, {}, "m"], TypeError, "model must be a Linen module"),
        ],
    ),
    "cache_taps": Entry(
        ot.nn.cache_taps,
        TAPS,
        [
            *BATCHES,
            Row("backbone_fn", NOT_A_FUNCTION, TypeError, "must be callable"),
            Row("backbone_fn", [lambda batch: ()], ValueError, "returns no arrays"),
            Row("backbone_fn", [lambda b: b["x"].sum()], ValueError, "leading axis"),
            Row("batch_size", [0, -1], ValueError, "batch_size must be at least 1"),
            Row("batch_size", ["2", 2.0, True], TypeError, "batch_size must be an int"),
            Row("folder", ["anywhere"], ValueError, "folder needs params"),
            Row("dtype", NOT_A_DTYPE, TypeError, "dtype must be a dtype"),
            Row("dtype", [int, "int8", bool], ValueError, "be a floating dtype"),
            Row("stacked", NOT_A_SELECTOR, TypeError, "stacked must be a pattern"),
            Row("stacked", ["nothing"], ValueError, "stacked 'nothing' matches no"),
            Row("stacked", [{"": 2}], ValueError, "and so no layer axis 2"),
            Row("stacked", ["", {"": 0}], ValueError, "its axis 1 must count the"),
            flag("progress"),
        ],
    ),
    "TapCache": Entry(
        lambda rows: ot.nn.cache_taps(**TAPS)[rows],
        {"rows": 0},
        [Row("rows", ["x", 0.5, [0.5], [[0]], None, RAGGED], TypeError, "rows of a")],
    ),
    "TapCache.open": Entry(
        ot.nn.TapCache.open,
        {},
        [
            Row("folder", ["no/such/folder"], ValueError, "holds no cache of taps"),
            Row("folder", [None, 3.5], TypeError, "folder must be a path"),
        ],
    ),
}


SIDE_MODEL = nnx.Dict(body=nnx.Param(jnp.ones(3)), side=nnx.Param(jnp.ones(2)))
LADDER = {"width": 8, "num_layers": 2, "reduction": 2}
RUNGS = [
    *whole("width"),
    *whole("num_layers"),
    *whole("reduction"),
    option("gate"),
    Row("merge", ["no", 3, True], ValueError, "merge must be one of"),
    Row("temperature", ["x", None, True], TypeError, f"temperature {NUMBER}"),
    Row("temperature", [0.0, -1.0, NAN], ValueError, "temperature must be positive"),
    Row("reduction", [3], ValueError, "reduction must divide width"),
    Row("num_heads", [3], ValueError, "num_heads must divide"),
    Row("num_heads", ["2", 2.0], TypeError, "num_heads must be an int"),
    Row("keep", [3, "ab", [0.5]], TypeError, "keep must be a sequence of ints"),
    Row("keep", [[], [1, 0], [2], [-1]], ValueError, "keep must hold ascending"),
    Row("gate_value", [0.5], ValueError, "gate_value goes with gate='constant'"),
    Row("param_dtype", [None, 3, object()], TypeError, "param_dtype must be a dtype"),
    Row("param_dtype", [int, bool], ValueError, "be a floating dtype"),
]
MODULES |= {
    "side_filter": Entry(
        ot.nn.side_filter,
        {"model": SIDE_MODEL, "side": "side"},
        [
            Row("side", [3, {}, [None]], TypeError, "side must be a pattern"),
            Row("side", ["nothing"], ValueError, "matches no leaf"),
            Row("side", ["("], ValueError, "is not a regular expression"),
        ],
    ),
    "SideLadder": Entry(
        lambda **how: ot.nn.SideLadder(
            lambda width, layer, rngs: nnx.Linear(width, width, rngs=rngs),
            rngs=nnx.Rngs(0),
            **how,
        ),
        LADDER,
        RUNGS,
    ),
    "linen.SideLadder": Entry(
        lambda **how: ot.nn.linen.SideLadder(lambda width, layer: None, **how),
        LADDER,
        RUNGS,
    ),
}
