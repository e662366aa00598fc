"""Steps relative to the parameter's root mean square."""

import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from tests.problems import values


def scaled(update, param, **options):
    """One update."""
    tx = ot.scale_by_param_rms(**options)
    return tx.update(update, tx.init(param), param)[0]


def test_vector_t12():
    theta = jnp.asarray([0.3, -0.4])
    got = scaled(jnp.asarray([1.0, -1.0]), theta, floor=0.0)
    np.testing.assert_allclose(got, [0.353553, -0.353553], rtol=1e-5)
    got = scaled(jnp.asarray([1.0, 0.0]), theta, floor=0.0)
    np.testing.assert_allclose(got, [0.353553, 0.0], rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (4, 3, 2), (0, 3)])
def test_equals_the_equation(shape):
    update, param = values(shape, jnp.float32, 1), 3 * values(shape, jnp.float32, 2)
    p, u = np.asarray(param, np.float64), np.asarray(update, np.float64)
    whole = u * np.sqrt((p**2).sum() / max(p.size, 1))
    np.testing.assert_allclose(scaled(update, param), whole, rtol=1e-6)
    if shape:
        want = np.array([x * np.sqrt((y**2).mean()) for x, y in zip(u, p, strict=True)])
        got = scaled(update, param, rows=lambda path, leaf: True)
        np.testing.assert_allclose(got, want.reshape(shape), rtol=1e-6)


@pytest.mark.parametrize("by_row", [False, True])
def test_where_squares_leave_float32(by_row):
    """The RMS is right between those ends, as the docstring says."""
    rows = (lambda path, leaf: True) if by_row else None
    run = lambda size: scaled(
        jnp.ones((1, 4)), jnp.full((1, 4), size), floor=0.0, rows=rows
    )
    for size in 1e-18, 1e18:
        np.testing.assert_allclose(run(size), size, rtol=1e-6)
    assert not run(1e-23).any()
    assert np.isinf(run(1e20)).all()


def test_the_floor_lets_zeros_move():
    zeros, ones = jnp.zeros((2, 2)), jnp.ones((2, 2))
    assert scaled(ones, zeros).tolist() == (1e-3 * np.ones((2, 2), np.float32)).tolist()
    assert not scaled(ones, zeros, floor=0.0).any()


def test_narrow_parameters_do_not_overflow():
    param = jnp.full((4, 4), 1e4, jnp.float16)  # whose square is beyond float16
    got = scaled(jnp.full((4, 4), 0.5, jnp.float16), param)
    assert got.dtype == jnp.float16 and (got == 5000).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"floor": -1.0}, ValueError, "floor must be at least 0"),
        ({"rows": "x"}, ValueError, "rows 'x' matches no leaf"),
        ({"rows": "b"}, ValueError, "rows chooses scalars, .* 'b'"),
    ],
    ids=str,
)
def test_bad_arguments(options, error, message):
    params = {"a": jnp.ones(2), "b": jnp.ones(())}
    with pytest.raises(error, match=message):
        ot.scale_by_param_rms(**options).init(params)


def test_parameters_are_needed():
    tx = ot.scale_by_param_rms()
    with pytest.raises(ValueError, match="scale_by_param_rms needs params"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
