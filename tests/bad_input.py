"""Tables of bad input for every public name: which argument, which values, which error.

A new public function or class needs an entry here. `good` holds arguments that work;
each row replaces one of them by values that must be refused.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optaxtricks

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)
NAN, INF = float("nan"), float("inf")


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


def whole(name: str) -> list[Row]:
    return [
        Row(name, NOT_AN_INT, TypeError, f"{name} must be an int"),
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
        r"mask at 'emb': expected shape \(4, 2\), got \(2, 4\)",
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
LION += [flag("cautious")]
TIGER = [*number("beta", ENDS, OPEN), *whole("accumulate_steps"), *MU_DTYPE, *RELAXED]
LEARNING_RATE = size("learning_rate", schedule=True)
DECAY = size("weight_decay", schedule=True)
DROPOUT = [*KEEP_RATE, *KEY, flag("rescale"), option("granularity")]
DROPOUT += [option("distribution")]


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
        [INNER, *KEEP_RATE, *KEY],
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
            *selector("shrink_to_one", "to_one"),
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
            *selector("embeddings", "selector"),
            Row("unknown", [1], TypeError, "unexpected keyword argument 'unknown'"),
            Row("b1", [2.0], ValueError, "b1 must lie in"),
        ],
    ),
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

STRINGS = {"emb": "x", "w": jnp.ones(2)}
TREE = {"tree": params()}
SCORES = {"scores": params(), "keep_fraction": 0.5}
RAGGED = [[1.0], [1.0, 2.0]]
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
            Row("table", [jnp.ones((2, 2), int)], TypeError, "floating-point leaves"),
            Row("table", [jnp.ones((), float)], ValueError, "table must have rows"),
            Row("table", [jnp.ones((0, 3))], ValueError, "table must have rows"),
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

GROUP = ot.PruneGroup({"w": 1})
BACKBONE = {"w": np.ones((4, 6)), "b": np.ones(3)}
BATCH = {"x": np.ones((4, 2), np.float32)}
FISHER = {
    "log_likelihood": lambda params, example: -(params["w"] * example["x"]).sum(),
    "params": {"w": jnp.ones(2)},
    "batches": BATCH,
}
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
        ],
    ),
}


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
NOT_A_FUNCTION = [None, 1, "loss"]
TAPS = {"backbone_fn": lambda batch: batch["x"] + 1, "batches": BATCH}
MODULES: dict[str, Entry] = {
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
            Row("model", [None, 3, {}, "m"], ValueError, "needs a model with a RowEm"),
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

TABLE: dict[str, Entry] = {**FACTORIES, **SELECTION, **CHANNELS, **MODULES}
