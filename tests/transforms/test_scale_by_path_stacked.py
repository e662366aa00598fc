"""Factors of stacks: one a layer, as the list of the layers would have."""

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks
from tests.collectives import exchanges
from tests.problems import assert_same, values

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)
RATES = [0.25, 1.0, 0.3, 0.0]


def run(tx, grads):
    """The first update of a gradient tree."""
    return tx.update(grads, tx.init(grads))[0]


def stack(dtype: Any = jnp.float32, axis: int = 0) -> Any:
    """Four layers of a matrix and a vector, and a head of no layers."""
    kernel = jnp.moveaxis(values((4, 3, 5), dtype, 1), 0, axis)
    bias = jnp.moveaxis(values((4, 5), dtype, 2), 0, min(axis, 1))
    return {"head": values((5,), dtype, 3), "layers": {"bias": bias, "kernel": kernel}}


def unrolled(tree: Any, axis: int = 0) -> Any:
    """The same with a list of layers."""
    axes = {"bias": min(axis, 1), "kernel": axis}
    take = lambda i: {k: v.take(i, axis=axes[k]) for k, v in tree["layers"].items()}
    return {"head": tree["head"], "layers": [take(i) for i in range(4)]}


AXES: list[Any] = [
    (0, "^layers/"),
    (1, {"^layers/": 1}),
    (2, {"kernel": -1, "bias": 1}),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
@pytest.mark.parametrize(("axis", "stacked"), AXES)
def test_a_stack_equals_the_list_of_its_layers(dtype, axis, stacked):
    grads = stack(jnp.dtype(dtype), axis)
    tx = ot.scale_by_path({"^layers/": RATES, "^head": 2.0}, stacked=stacked)
    got = run(tx, grads)
    single = {f"^layers/{i}/": rate for i, rate in enumerate(RATES)}
    want = run(ot.scale_by_path({**single, "^head": 2.0}), unrolled(grads, axis))
    assert_same(unrolled(got, axis), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_layer_is_multiplied_by_its_own_number(dtype):
    grads = stack(dtype)
    got = run(ot.scale_by_path({"kernel": RATES}, stacked="^layers/"), grads)
    assert_same(got["layers"]["bias"], grads["layers"]["bias"])
    factors = np.asarray(RATES, np.float32).astype(np.float64)[:, None, None]
    want = np.asarray(grads["layers"]["kernel"]).astype(np.float64) * factors
    want = want.astype(np.float32).astype(dtype)
    np.testing.assert_array_equal(np.asarray(got["layers"]["kernel"]), want)


@pytest.mark.parametrize(
    "rates",
    [
        RATES,
        tuple(RATES),
        np.asarray(RATES),
        np.asarray(RATES, np.float32),
        jnp.asarray(RATES),
        [jnp.float32(rate) for rate in RATES],
        lambda step: jnp.asarray(RATES),
        lambda step: RATES,
        lambda step: [jnp.where(step < 1, rate, 0.5) for rate in RATES],
    ],
)
def test_a_vector_may_be_anything_that_holds_numbers(rates):
    want = run(ot.scale_by_path({"^layers": RATES}, stacked="^layers"), stack())
    tx = ot.scale_by_path({"^layers": rates}, stacked="^layers")
    assert_same(run(tx, stack()), want)
    state = tx.init(stack())
    assert_same(jax.jit(tx.update)(stack(), state)[0], want)


def test_numbers_and_schedules_serve_stacks_as_well():
    grads = stack()
    half = lambda step: jnp.where(step < 1, 0.5, 1.0)
    for factor in (0.5, half):
        plain = run(ot.scale_by_path({"^layers": factor}), grads)
        tx = ot.scale_by_path({"^layers": factor}, stacked="^layers")
        assert_same(run(tx, grads), plain)


def test_a_schedule_of_vectors_counts_steps_in_a_scan():
    vectors = jnp.asarray([RATES, RATES[::-1]])
    tx = ot.scale_by_path({"kernel": lambda step: vectors[step]}, stacked="^layers/")
    step = lambda state, _: tx.update(stack(), state)[::-1]
    _, got = jax.lax.scan(step, tx.init(stack()), length=2)
    for i, rates in enumerate((RATES, RATES[::-1])):
        want = run(ot.scale_by_path({"kernel": rates}, stacked="^layers/"), stack())
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], got), want)


def test_a_vector_may_be_traced():
    make = lambda rates: ot.scale_by_path({"kernel": rates}, stacked="^layers/")
    many = jnp.asarray([RATES, RATES[::-1]])
    batch = jax.jit(jax.vmap(lambda rates: run(make(rates), stack())))(many)
    for i in range(2):
        want = run(make(many[i]), stack())
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], batch), want)
    tx: Any = optax.inject_hyperparams(make)(rates=jnp.asarray(RATES))
    assert_same(run(tx, stack()), run(make(RATES), stack()))
    scaled = jax.jit(lambda x: run(make([x, 1.0, 0.3, 0.0]), stack()))(0.25)
    assert_same(scaled, run(make(RATES), stack()))


def test_ones_pass_the_bits_and_a_one_among_others_the_numbers():
    odd = jnp.asarray([[jnp.nan, -0.0, jnp.inf], [1e-45, 3.0, -jnp.inf]], jnp.float32)
    grads = {"layers": odd}
    got = run(ot.scale_by_path({"": np.ones(2)}, stacked="layers"), grads)
    assert got["layers"] is odd
    tx = ot.scale_by_path({"": [1.0, 0.5]}, stacked="layers")
    assert_same(run(tx, grads)["layers"][0], odd[0])


def test_the_vector_may_change_after_the_build():
    rates = np.asarray(RATES)
    tx = ot.scale_by_path({"kernel": rates}, stacked="^layers/")
    want = run(tx, stack())
    rates[:] = 9.0
    assert_same(run(tx, stack()), want)


def test_stacks_that_optax_masked_out_ask_for_nothing():
    tx = ot.scale_by_path({"^layers/": RATES}, stacked="^layers/")
    gap = optax.MaskedNode()
    grads = {"head": jnp.ones(2), "layers": {"bias": gap, "kernel": None}}
    assert run(tx, grads)["head"].tolist() == [1.0, 1.0]
    everything = optax.masked(tx, {"head": False, "layers": True})
    assert_same(run(everything, stack()), run(tx, stack()))


MESHES = list(itertools.product([AxisType.Auto, AxisType.Explicit], [0, 1, 2]))


@pytest.mark.parametrize(
    "factor", [RATES, lambda step: jnp.asarray(RATES)], ids=["known", "scheduled"]
)
@pytest.mark.parametrize(("kind", "divided"), MESHES)
def test_no_communication_whatever_axis_is_divided(kind, divided, factor):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    axes: list[Any] = [None] * 3
    axes[divided] = "x"
    axes[divided - 1] = "y"
    grads = {"layers": values((4, 4, 4), jnp.float32, 1)}
    there = jax.device_put(grads, NamedSharding(mesh, PartitionSpec(*axes)))
    for axis in (0, 1):
        tx = ot.scale_by_path({"": factor}, stacked={"": axis})
        update, state = jax.jit(tx.update), tx.init(there)
        compiled = update.lower(there, state).compile()
        assert exchanges(compiled.as_text()) == []
        got = compiled(there, state)[0]
        assert_same(got, run(tx, grads))
        assert got["layers"].sharding.is_equivalent_to(there["layers"].sharding, 3)


BAD_VECTORS: list[Any] = [
    ([1.0, -1.0], ValueError, r"factors\['kernel'\] must be at least 0 and finite"),
    ([1.0, np.nan], ValueError, r"factors\['kernel'\] must be at least 0 and finite"),
    ([1.0, "x"], TypeError, r"factors\['kernel'\] must be a number, a schedule or a v"),
    ([[1.0]], TypeError, r"factors\['kernel'\] must be a number, a schedule or a vect"),
    ([[1.0], [1.0, 2.0]], TypeError, "must be a number, a schedule or a vector"),
    ([True, False], TypeError, "must be a number, a schedule or a vector"),
    (jnp.ones(4, complex), TypeError, "must be a number, a schedule or a vector"),
]


@pytest.mark.parametrize(("rates", "error", "message"), BAD_VECTORS)
def test_bad_vectors(rates, error, message):
    with pytest.raises(error, match=message):
        ot.scale_by_path({"kernel": rates}, stacked="^layers/")


WRONG_LEAVES: list[Any] = [
    ("^layers", RATES[:3], 0, "'layers/bias' has 4 layers, on axis 0"),
    ("kernel", RATES, 1, "'layers/kernel' has 3 layers, on axis 1"),
    ("^head", RATES, 0, "'head' is no stack: `stacked` does not choose it"),
    ("", RATES, 0, "'head' is no stack"),
]


@pytest.mark.parametrize(("pattern", "rates", "axis", "end"), WRONG_LEAVES)
def test_a_vector_must_have_a_number_for_each_layer(pattern, rates, axis, end):
    stacked = {"^layers/": axis}
    name = rf"factors\['{'.' if pattern.startswith('^') else ''}{pattern.lstrip('^')}'"
    start = rf"{name}\] is a vector of {len(rates)} numbers, but the leaf at "
    with pytest.raises(ValueError, match=start + end):
        ot.scale_by_path({pattern: rates}, stacked=stacked).init(stack())
    tx = ot.scale_by_path({pattern: lambda step: rates}, stacked=stacked)
    state = tx.init(stack())  # a schedule is not asked before the first step
    with pytest.raises(ValueError, match=start + end):
        tx.update(stack(), state)


def test_without_stacked_no_leaf_is_a_stack():
    tx = ot.scale_by_path({"kernel": RATES})
    with pytest.raises(ValueError, match="'layers/kernel' is no stack"):
        tx.init(stack())


def test_what_stacked_says_must_be_there():
    with pytest.raises(ValueError, match=r"stacked '\^blocks' matches no leaf"):
        ot.scale_by_path({"": 1.0}, stacked="^blocks").init(stack())
    with pytest.raises(ValueError, match=r"'head' has shape .* no layer axis 1"):
        ot.scale_by_path({"": 1.0}, stacked={"head": 1}).init(stack())


def test_rows_of_a_row_sparse_update_are_no_layers():
    rows = ot.RowSparse(jnp.array([0]), jnp.ones((1, 2)), 3)
    tx = ot.scale_by_path({"": 2.0}, stacked="emb")
    with pytest.raises(ValueError, match="update at 'emb' is a RowSparse, whose rows"):
        tx.update({"emb": rows}, tx.init({"emb": jnp.ones((3, 2))}))
