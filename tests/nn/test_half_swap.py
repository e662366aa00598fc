"""half_swap: what it does, what it costs, and the law that it is there for (T10)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot
from tests.problems import values

SHAPES = [(2,), (8,), (3, 4), (2, 3, 6), (0, 4), (3, 0)]


def test_vector_t10() -> None:
    x = jnp.array([1.0, 2.0, 3.0, 4.0])
    assert ot.nn.half_swap(x).tolist() == [3.0, 4.0, 1.0, 2.0]
    assert float(x @ ot.nn.half_swap(x)) == 22
    assert float(x @ x) == 30


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_it_swaps_and_swaps_back(shape: tuple[int, ...], dtype: Any) -> None:
    x = values(shape, dtype, 0)
    swapped = ot.nn.half_swap(x)
    half = shape[-1] // 2
    np.testing.assert_array_equal(swapped[..., :half], x[..., half:])
    np.testing.assert_array_equal(swapped[..., half:], x[..., :half])
    np.testing.assert_array_equal(ot.nn.half_swap(swapped), x)
    assert swapped.dtype == x.dtype


def test_it_is_orthogonal() -> None:
    matrix = ot.nn.half_swap(jnp.eye(6))
    np.testing.assert_array_equal(matrix @ matrix.T, jnp.eye(6))
    np.testing.assert_array_equal(matrix, matrix.T)


def test_a_row_times_its_swap_has_mean_zero_and_twice_the_variance() -> None:
    d, sigma, count = 32, 0.5, 20_000
    w = np.random.default_rng(0).normal(0, sigma, (count, d))
    dots = (w * np.asarray(ot.nn.half_swap(w.astype(np.float32)))).sum(-1)
    variance = 2 * d * sigma**4
    assert abs(dots.mean()) < 5 * np.sqrt(variance / count)
    # The deviation of the sample variance follows from the sample's fourth moment.
    squares = dots**2
    assert abs(squares.mean() - variance) < 5 * squares.std() / np.sqrt(count)


def test_it_brings_the_initial_loss_of_a_tied_table_near_log_n() -> None:
    n, d = 2000, 256
    table = values((n, d), jnp.float32, 0)
    table = table / jnp.sqrt(jnp.square(table).mean() * d)
    h = table[:64]
    h = h / jnp.sqrt(jnp.square(h).mean(-1, keepdims=True))
    loss = lambda h: -jax.nn.log_softmax(h @ table.T)[jnp.arange(64), 100:164].mean()
    plain, swapped = loss(h), loss(ot.nn.half_swap(h))
    # log(e^sqrt(d) + n - 1), as the dot product is d sigma with sigma = 1/sqrt(d).
    assert abs(plain - np.log(np.exp(np.sqrt(d)) + n - 1)) < 0.5
    assert abs(swapped - np.log(n)) < 1


def test_under_every_transformation() -> None:
    x, weights = values((3, 4), jnp.float32, 0), values((3, 4), jnp.float32, 1)
    want = ot.nn.half_swap(x)
    np.testing.assert_array_equal(jax.jit(ot.nn.half_swap)(x), want)
    np.testing.assert_array_equal(jax.vmap(ot.nn.half_swap)(x), want)
    gradient = jax.grad(lambda x: (ot.nn.half_swap(x) * weights).sum())(x)
    np.testing.assert_array_equal(gradient, ot.nn.half_swap(weights))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_batches_need_no_communication(kind: AxisType) -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, P("data", None))
        x = jax.device_put(values((8, 4), jnp.float32, 0), rows)
        compiled = jax.jit(ot.nn.half_swap).lower(x).compile()
        result = compiled(x)
        assert result.sharding.is_equivalent_to(rows, 2)
        np.testing.assert_array_equal(result, np.roll(np.asarray(x), 2, axis=-1))
    text = compiled.as_text()
    assert text and not any(
        word in text for word in ("all-gather", "all-reduce", "collective-permute")
    )


@pytest.mark.parametrize("shape", [(), (3,), (4, 1)])
def test_bad_shapes_are_errors(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needs a last axis of even size, got shape"):
        ot.nn.half_swap(jnp.ones(shape))
