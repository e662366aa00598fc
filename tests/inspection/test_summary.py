"""The table: counts, state put down to its parameters, and what counts as trained."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import optaxtricks as ot
from tests.problems import NnxNet, linen_params

PARAMS = {"emb": jnp.ones((100, 8)), "head": {"b": jnp.ones(2), "w": jnp.ones((8, 2))}}
pytestmark = pytest.mark.usefixtures("standard_promotion")


def cells(text: str) -> dict[str, list[str]]:
    """The lines of a table by their first cell."""
    lines = [line.split() for line in text.splitlines()]
    return {first: rest for first, *rest in lines}


def _trained(tx: Any, params: Any = PARAMS) -> dict[str, int]:
    rows = cells(ot.summary(tx, params))
    return {name: int(rows[name][1].replace(",", "")) for name in params}


def test_the_table_is_aligned_and_complete() -> None:
    assert ot.summary(optax.adam(1e-3), PARAMS).splitlines() == [
        "path   parameters  trained  state bytes  per parameter",
        "emb           800      800        6,400            8.0",
        "head           18       18          144            8.0",
        "other                                 4",
        "total         818      818        6,548            8.0",
    ]


FROZEN = {"emb": 0, "head": 18}
NONE = {"emb": 0, "head": 0}
ALL = {"emb": 800, "head": 18}
LABELS = {"emb": "no", "head": "yes"}
NO_EMB = {"emb": False, "head": True}
PARTS: Any = {"no": optax.set_to_zero(), "yes": optax.adam(1e-3)}


@pytest.mark.parametrize(
    ("tx", "want"),
    [
        (optax.adamw(1e-3), ALL),
        (optax.partition(PARTS, LABELS), FROZEN),
        (optax.chain(optax.partition(PARTS, LABELS), optax.scale(-2.0)), FROZEN),
        (
            optax.chain(
                optax.partition(PARTS, LABELS),
                optax.scale_by_schedule(lambda step: 1 / (1 + step)),
            ),
            FROZEN,
        ),
        (
            optax.chain(optax.partition(PARTS, LABELS), optax.add_decayed_weights(0.1)),
            ALL,
        ),
        (optax.MultiSteps(optax.partition(PARTS, LABELS), 2), FROZEN),
        (optax.apply_if_finite(optax.partition(PARTS, LABELS), 2), FROZEN),
        (optax.chain(optax.adamw(1e-3), ot.keep_entries(NO_EMB)), FROZEN),
        # Before the optimizer a mask leaves weight decay at work.
        (optax.chain(ot.keep_entries(NO_EMB), optax.adamw(1e-3)), ALL),
        (ot.compact_entries(optax.adam(1e-3), NO_EMB), FROZEN),
        (ot.child_tuning_d(optax.adamw(1e-3), NO_EMB), FROZEN),
        (ot.lion(1e-3), ALL),
        (ot.tiger(1e-3, accumulate_steps=2), ALL),
        (optax.contrib.muon(1e-3), ALL),
        (optax.chain(optax.set_to_zero(), optax.trace(0.9)), ALL),
        (optax.chain(optax.set_to_zero(), optax.clip_by_global_norm(1.0)), NONE),
    ],
    ids=lambda value: "",
)
def test_what_counts_as_trained(tx: Any, want: dict[str, int]) -> None:
    assert _trained(tx) == want


def test_state_of_any_shape_goes_to_its_parameter() -> None:
    mask = {"emb": jnp.eye(100, 8) > 0, "head": True}
    tx = ot.compact_entries(optax.adam(1e-3), mask)
    rows = cells(ot.summary(tx, PARAMS))
    assert rows["emb"][2:] == ["64", "0.1"]  # eight entries, two moments
    assert rows["head"][2:] == ["144", "8.0"]
    factored = optax.adafactor(1e-3, min_dim_size_to_factor=2)
    assert cells(ot.summary(factored, PARAMS))["emb"][2] == str(4 * (100 + 8 + 1))
    assert cells(ot.summary(ot.keep_entries(mask), PARAMS))["other"] == ["100"]


def test_abstract_parameters_and_every_framework() -> None:
    abstract = jax.eval_shape(lambda tree: tree, PARAMS)
    want = ot.summary(optax.adam(1e-3), PARAMS)
    assert ot.summary(optax.adam(1e-3), abstract) == want
    huge = {"w": jax.ShapeDtypeStruct((2**20, 2**14), jnp.bfloat16)}
    assert cells(ot.summary(ot.lion(1e-3), huge))["w"][3] == "2.0"
    wrapped = nnx.state(NnxNet(), nnx.Param)
    linen = ot.summary(optax.adam(1e-3), linen_params())
    assert ot.summary(optax.adam(1e-3), wrapped) == linen
    single = cells(ot.summary(optax.sgd(0.1), jnp.ones(5)))
    assert single["(root)"] == ["5", "5", "0", "0.0"]


def test_an_optimizer_that_takes_arguments_and_no_placeholder() -> None:
    value = lambda params: jnp.sum(params["w"] ** 2)
    params = {"w": jnp.ones(3)}
    rows = cells(
        ot.summary(
            optax.lbfgs(linesearch=None), params, value=value(params), grad=params
        )
    )
    assert rows["w"][:2] == ["3", "3"]
    assert int(rows["other"][0].replace(",", "")) > 0  # Optax cannot tell parts apart


STACKED = {
    "decoder": {"b": jnp.ones((2, 6, 3)), "w": jnp.ones((12, 2))},
    "emb": jnp.ones((5, 3)),
    "encoder": [jnp.ones(3), jnp.ones(3)],
}


def test_a_column_says_how_many_layers_stacks_have() -> None:
    stacked = {"^decoder/b": 1, "^decoder/w": 0}
    assert ot.summary(optax.sgd(1.0), STACKED, stacked=stacked).splitlines() == [
        "path     parameters  trained  state bytes  per parameter  layers",
        "decoder          60       60            0            0.0   6, 12",
        "emb              15       15            0            0.0",
        "encoder           6        6            0            0.0",
        "other                                   0",
        "total            81       81            0            0.0",
    ]


def _factors(tx: Any, params: Any = STACKED, **more: Any) -> dict[str, str]:
    """The last column, which must be that of factors."""
    header, *lines = ot.summary(tx, params, **more).splitlines()
    start = header.index("per parameter") + len("per parameter")
    assert header.split()[-1] == "factor"
    return {line.split()[0]: line[start:].strip() for line in lines}


def test_a_column_shows_factors_where_something_multiplies() -> None:
    half = ot.scale_by_path({"^emb": 0.5, "encoder/1": 3})
    want = {"decoder": "1", "emb": "0.5", "encoder": "1 .. 3"}
    want |= {"other": "", "total": ""}
    assert _factors(half) == want
    assert _factors(optax.chain(optax.adam(1e-3), half)) == want
    assert _factors(optax.MultiSteps(half, 2)) == want
    assert _factors(optax.apply_if_finite(half, 2)) == want
    assert _factors(ot.at_window_end(half, accumulate_steps=2)) == want
    # MultiSteps traces an update twice, once for its shapes.
    rate = optax.inject_hyperparams(lambda rate: optax.chain(half, optax.scale(rate)))
    assert _factors(optax.MultiSteps(rate(0.5), 2)) == want
    jitted = optax.GradientTransformation(half.init, jax.jit(half.update))
    assert _factors(jitted) == want
    assert _factors(jitted) == want


def test_factors_are_multiplied_up() -> None:
    depth = ot.scale_by_depth(
        0.5, layers=r"encoder/(\d)", stacked={"^decoder/b": 0}, first="emb"
    )
    want = {"decoder": "0.25 .. 1", "emb": "0.125", "encoder": "0.25 .. 0.5"}
    want |= {"other": "", "total": ""}
    assert _factors(depth) == want
    both = optax.chain(depth, ot.scale_by_path({"": 8.0}))
    want |= {"decoder": "2 .. 8", "emb": "1", "encoder": "2 .. 4"}
    assert _factors(both) == want


def test_factors_of_leaves_that_are_not_trained_do_not_show() -> None:
    labels = {"decoder": "no", "emb": "yes", "encoder": "yes"}
    half: Any = ot.scale_by_path({"": 0.5})
    parts: Any = {"no": optax.set_to_zero(), "yes": half}
    found = _factors(optax.partition(parts, labels))
    assert found["decoder"] == "" and found["emb"] == "0.5"
    after = optax.chain(optax.partition(parts, labels), ot.scale_by_path({"": 4.0}))
    assert _factors(after) == {**found, "emb": "2", "encoder": "2"}
    frozen: Any = {"no": optax.chain(half, optax.set_to_zero()), "yes": half}
    assert _factors(optax.partition(frozen, labels)) == found


def test_factors_that_are_not_known_vary() -> None:
    falling = ot.scale_by_path({"emb": lambda step: 1 / (1 + step)})
    assert _factors(falling)["emb"] == "varies"
    assert _factors(falling)["encoder"] == "1"
    fixed = ot.scale_by_path({"emb": lambda step: 0.25})
    assert _factors(fixed)["emb"] == "0.25"
    injected = optax.inject_hyperparams(ot.scale_by_depth)
    tx = injected(0.5, layers=r"encoder/(\d)", first="emb")
    found = _factors(tx)
    assert (found["encoder"], found["decoder"]) == ("varies", "1")


def test_nothing_is_noted_outside_of_a_summary() -> None:
    tx = ot.scale_by_path({"emb": 0.5})
    tx.update(STACKED, tx.init(STACKED))
    assert "factor" not in ot.summary(optax.sgd(1.0), STACKED)
    with pytest.raises(ValueError, match="match no leaf"):
        ot.summary(ot.scale_by_path({"x": 0.5}), STACKED)
    assert "factor" not in ot.summary(optax.sgd(1.0), STACKED)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="summary needs parameters"):
        ot.summary(optax.sgd(0.1), {})
    with pytest.raises(TypeError, match="tx must be an optax"):
        ot.summary("adam", PARAMS)
    with pytest.raises(ValueError, match="stacked 'x' matches no leaf"):
        ot.summary(optax.sgd(0.1), PARAMS, stacked="x")


def test_monitors_of_one_name_are_refused_before_a_step() -> None:
    """No `init` knows of another: `metrics` of a state would be the first to see."""
    watch = lambda name, labels="all", **how: ot.monitor_groups(
        labels, name=name, **how
    )
    same = optax.chain(watch("grads"), optax.scale(0.5), watch("grads"))
    message = r"two monitors report 'grads/all/\w+'; give each its own name, as in"
    with pytest.raises(ValueError, match=message + r" monitor_groups\(labels, name="):
        ot.summary(same, PARAMS)
    stack = {"w": jnp.ones((3, 4))}
    layers = watch("grads", "blocks", stacked="w")
    for second, kept in (watch("grads", "blocks/2"), False), (watch("x"), True):
        tx = optax.chain(layers, optax.masked(second, {"w": True}))
        if kept:
            assert cells(ot.summary(tx, stack))["w"][0] == "12"
        else:
            with pytest.raises(ValueError, match="'grads/blocks/2/"):
                ot.summary(tx, stack)
    # Of a part without leaves nothing is read, and names of groups may be shared.
    parts: dict[Any, Any] = {
        "a": watch("grads", "a"),
        "b": watch("grads", "b"),
        "c": watch("grads"),
    }
    split = optax.partition(parts, {"emb": "a", "head": "b"})
    assert cells(ot.summary(split, PARAMS))["total"][0] == "818"
