"""Sums of gradients over examples that are shared out to devices."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from optaxtricks._core.example_gradients import each, fold, fold_lanes, lanes_of
from tests.collectives import exchanges
from tests.problems import values

WEIGHT = values((6, 4), jnp.float32, 0)


def rule(example: jax.Array) -> list[jax.Array]:
    """Squares of a gradient, and a number beside them."""
    grad = jax.grad(lambda weight: jnp.tanh(example @ weight).sum())(WEIGHT)
    return [grad**2, example[0]]


def shared(size: int, kind: AxisType = AxisType.Auto, axes: Any = "data") -> Any:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    examples = values((size, 6), jnp.float32, 1)
    return jax.device_put(examples, NamedSharding(mesh, PartitionSpec(axes)))


def zeros() -> list[jax.Array]:
    return [jnp.zeros((6, 4)), jnp.zeros(())]


def inside_loops(text: str) -> str:
    """The part of an HLO module outside of its entry computation."""
    return text[: text.index("\nENTRY ")]


@pytest.mark.parametrize("width", [8, 16])
def test_one_all_reduce_a_batch_outside_the_loop(width: int) -> None:
    examples = shared(48)
    lanes = lanes_of(examples, width)
    assert lanes is not None
    run: Any = jax.jit(lambda sums, x: fold_lanes(rule, sums, x, width, lanes))
    compiled = run.lower(zeros(), examples).compile()
    text = compiled.as_text() or ""
    assert not exchanges(inside_loops(text))
    found = exchanges(text)
    assert {x.kind for x in found} == {"all-reduce"}
    assert sorted(x.shape for x in found) == [(), (6, 4)]
    plain = fold(each(rule), zeros(), np.asarray(examples), 1)
    for got, want in zip(compiled(zeros(), examples), plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_reader_of_loops_sees_an_all_reduce_in_one() -> None:
    run: Any = jax.jit(lambda sums, x: fold(each(rule), sums, x, 8))
    text = run.lower(zeros(), shared(48)).compile().as_text()
    assert re.search("while", text) and exchanges(inside_loops(text))


def test_a_rest_of_the_batch_counts_too() -> None:
    lanes = lanes_of(shared(48), 8)
    assert lanes is not None
    examples = values((20, 6), jnp.float32, 1)
    want = fold(each(rule), zeros(), examples, 1)
    got = jax.jit(lambda sums, x: fold_lanes(rule, sums, x, 8, lanes))(
        zeros(), examples
    )
    for left, right in zip(got, want, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5)


def test_where_one_sum_will_do() -> None:
    assert lanes_of(shared(48, axes=None), 8) is None
    assert lanes_of(shared(48), 4) is None
    assert lanes_of(shared(48, AxisType.Explicit), 8) is None
    assert lanes_of(np.ones((8, 2)), 8) is None
    assert lanes_of(jnp.ones((8, 2)), 8) is None
    traced: list[Any] = []
    jax.jit(lambda x: traced.append(lanes_of(x, 8)))(shared(8))
    assert traced == [None]


@pytest.mark.parametrize("per", ["example", "batch"])
def test_fisher_information_over_shared_batches(per: Any) -> None:
    log_p = lambda weight, x: jnp.tanh(x @ weight).sum()
    run = lambda batch: ot.fisher_information(
        log_p, WEIGHT, [batch] * 2, per=per, microbatch_size=8
    )
    examples = shared(48)
    np.testing.assert_allclose(
        run(examples), run(np.asarray(examples)), rtol=1e-5, atol=1e-8
    )


def test_a_batch_mean_is_one_all_reduce() -> None:
    log_p = lambda weight, x: jnp.tanh(x @ weight).sum()
    run: Any = jax.jit(
        lambda weight, batch: ot.fisher_information(log_p, weight, batch, per="batch")
    )
    found = exchanges(run.lower(WEIGHT, shared(48)).compile().as_text())
    assert [x.kind for x in found] == ["all-reduce"] * len(found)
    assert sum(x.size for x in found) <= WEIGHT.size + 1
