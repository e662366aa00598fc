"""The two measures of collapse: definition, ends of the scale, sharding, errors."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks
from tests.problems import assert_same, layout

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)


def normal(n, d, seed=0):
    """Independent normal entries."""
    return np.random.default_rng([seed, n, d]).standard_normal((n, d))


def reference(z):
    """Both measures in float64, with the eigenvalues of the whole covariance."""
    z = np.asarray(z, np.float64)
    n, d = z.shape
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(np.cov(unit, rowvar=False).reshape(d, d))
    shares = values[values > 1e-12 * values.max()] / values.sum()
    rank = np.exp(-(shares * np.log(shares)).sum()) / min(d, n - 1)
    return {"std_ratio": unit.std(0).mean() * d**0.5, "effective_rank": rank}


def measured(z):
    return {name: float(x) for name, x in ot.collapse_metrics(z).items()}


@pytest.mark.parametrize("shape", [(40, 7), (6, 30), (9, 8), (8, 9), (2, 5), (5, 1)])
@pytest.mark.parametrize("kind", ["isotropic", "stretched", "shifted"])
def test_equals_the_definition(shape, kind):
    z = normal(*shape)
    if kind == "stretched":
        z = z * 2.0 ** -np.arange(shape[1])
    if kind == "shifted":
        z = z + 3
    if kind == "shifted" and shape[1] == 1:
        z[0] = -1  # not all of one sign, which is collapse
    got, want = measured(jnp.asarray(z, jnp.float32)), reference(z)
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=2e-4, abs=1e-6), name
        assert 0 <= got[name] <= 1 + 1e-5


def test_a_uniform_direction_is_the_upper_end():
    # Known figure: 4096 normal rows of 256 entries, std 0.06249 where 1/16 is ideal.
    got = measured(jnp.asarray(normal(4096, 256), jnp.float32))
    assert got["std_ratio"] == pytest.approx(0.06249 * 16, abs=2e-4)
    assert 0.95 < got["effective_rank"] <= 1
    axes = jnp.concatenate([jnp.eye(6), -jnp.eye(6)])
    got = measured(axes)
    assert got["std_ratio"] == pytest.approx(1, abs=1e-6)
    assert got["effective_rank"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 1), jnp.float32),
        ((33, 17), jnp.float32),
        ((4096, 31), jnp.float32),
        ((5, 64), jnp.bfloat16),
        ((7, 3), jnp.float16),
    ],
)
def test_one_direction_is_exactly_zero(shape, dtype):
    row = jnp.asarray(normal(1, shape[1]), dtype)
    lengths = 2.0 ** np.random.default_rng(0).integers(-6, 6, (shape[0], 1))
    for scale in np.ones_like(lengths), lengths:
        z = row * jnp.asarray(scale, dtype)  # a power of two: no rounding
        assert {float(x) for x in ot.collapse_metrics(z).values()} == {0.0}


def test_directions_that_differ_by_rounding_are_collapsed():
    row = normal(1, 50)
    lengths = np.random.default_rng(0).uniform(0.1, 9, (1000, 1))
    z = jnp.asarray(row * lengths, jnp.float32)
    assert measured(z) == {"std_ratio": 0.0, "effective_rank": 0.0}
    near = jnp.asarray(row * lengths + 1e-3 * normal(1000, 50), jnp.float32)
    assert 0 < measured(near)["std_ratio"] < 0.01
    assert measured(near)["effective_rank"] > 0.5  # blind to the spread's size


def test_a_spread_over_few_dimensions_shows_in_the_rank_alone():
    d = 64
    flat = np.zeros((500, d))
    flat[:, :4] = normal(500, 4)
    turned = flat @ np.linalg.qr(normal(d, d))[0]
    got = measured(jnp.asarray(turned, jnp.float32))
    assert got["std_ratio"] > 0.9
    assert got["effective_rank"] == pytest.approx(4 / d, rel=0.02)
    line = jnp.asarray(np.outer(np.repeat([1.0, -1.0], 8), normal(1, d)), jnp.float32)
    assert measured(line)["effective_rank"] == pytest.approx(1 / 15, rel=1e-3)


def test_the_length_of_a_row_counts_for_nothing():
    z = normal(30, 12)
    want = measured(jnp.asarray(z, jnp.float32))
    for low, high in (-3, 3), (-36, -20), (20, 36):  # squares overflow
        scale = 10.0 ** np.random.default_rng(1).integers(low, high, (30, 1))
        got = measured(jnp.asarray(z * scale, jnp.float32))
        for name, value in want.items():
            assert got[name] == pytest.approx(value, rel=1e-4)


def test_a_row_of_zeros_is_the_point_zero():
    z = normal(6, 4)
    z[0] = 0
    unit = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-30)
    got = measured(jnp.asarray(z, jnp.float32))
    assert got["std_ratio"] == pytest.approx(2 * unit.std(0).mean(), rel=1e-5)
    assert measured(jnp.zeros((5, 3))) == {"std_ratio": 0.0, "effective_rank": 0.0}


def test_nan_in_nan_out():
    z = jnp.asarray(normal(6, 4), jnp.float32).at[2, 1].set(jnp.nan)
    assert all(np.isnan(x) for x in measured(z).values())


def test_float32_whatever_comes_in_and_traced_once():
    z = jnp.asarray(normal(20, 5))
    want = ot.collapse_metrics(z)
    for dtype in (jnp.float16, jnp.bfloat16):
        assert layout(ot.collapse_metrics(z.astype(dtype))) == layout(want)
    with jax.enable_x64(True):
        wide = ot.collapse_metrics(jnp.asarray(normal(20, 5), jnp.float64))
        assert layout(wide) == layout(want)
    assert_same(jax.jit(ot.collapse_metrics)(z), want)
    assert_same(ot.collapse_metrics(np.asarray(z)), want)
    batch = jax.vmap(ot.collapse_metrics)(jnp.stack([z, 2 * z, jnp.ones_like(z)]))
    np.testing.assert_allclose(batch["std_ratio"][0], want["std_ratio"], rtol=1e-5)
    assert float(batch["effective_rank"][2]) == 0


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [("data", None), (None, "data")])
def test_a_sharded_batch_is_measured_as_one(kind, spec):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    for z in normal(64, 16), np.broadcast_to(normal(1, 16), (64, 16)):
        z = jnp.asarray(z, jnp.float32)
        there = jax.device_put(z, NamedSharding(mesh, PartitionSpec(*spec)))
        want = measured(z)
        for name, value in jax.jit(ot.collapse_metrics)(there).items():
            assert float(value) == pytest.approx(want[name], rel=1e-5)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (jnp.ones((1, 4)), ValueError, r"at least 2 rows and 1 column, got \(1, 4\)"),
        (jnp.ones((0, 4)), ValueError, r"at least 2 rows and 1 column, got \(0, 4\)"),
        (jnp.ones((4, 0)), ValueError, r"at least 2 rows and 1 column, got \(4, 0\)"),
        (jnp.ones(4), ValueError, r"z must have shape \(n, d\).* got \(4,\)"),
        (jnp.ones((2, 2, 2)), ValueError, r"z must have shape \(n, d\)"),
        (
            jnp.ones((3, 3), int),
            TypeError,
            "z must hold real floating-point numbers, got",
        ),
        (
            jnp.ones((3, 3), bool),
            TypeError,
            "z must hold real floating-point numbers, got",
        ),
        (
            jnp.ones((3, 3), complex),
            TypeError,
            "z must hold real floating-point numbers, got",
        ),
        ("z", TypeError, "z must be an array"),
    ],
    ids=str,
)
def test_bad_arguments(z, error, message):
    with pytest.raises(error, match=message):
        ot.collapse_metrics(z)
