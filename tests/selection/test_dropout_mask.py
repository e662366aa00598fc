"""The dropout mask: rate, granularity, and what it may depend on."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot


def mask(shape, rate=0.3, *, key=0, step=0, path="w", **how):
    tree = {path: jax.ShapeDtypeStruct(shape, jnp.float32)}
    return np.asarray(ot.dropout_mask(tree, rate, key=key, step=step, **how)[path])


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_rate(rate):
    n = 2**20
    se = math.sqrt(rate * (1 - rate) / n)
    assert abs(mask((1024, 1024), rate).mean() - rate) < 5 * se


@pytest.mark.parametrize("granularity", ["row", "leaf"])
def test_rate_of_rows_and_leaves(granularity):
    n, rate = 1024, 0.3
    if granularity == "row":
        kept = mask((n, 2), rate, granularity="row")
        assert (kept[:, 0] == kept[:, 1]).all()
        draws = kept[:, 0]
    else:
        tree = {f"leaf{i}": jax.ShapeDtypeStruct((2,), jnp.float32) for i in range(n)}
        kept = ot.dropout_mask(tree, rate, key=0, step=0, granularity="leaf")
        draws = np.array([leaf for leaf in jax.device_get(kept).values()])
        assert (draws[:, 0] == draws[:, 1]).all()
        draws = draws[:, 0]
    assert abs(draws.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / n)


def test_joint_rates_are_products():
    """Pairs of neighbours in a row, a column, and in time are kept independently."""
    rate, n = 0.3, 2**20
    now, later = mask((1024, 1024), rate), mask((1024, 1024), rate, step=1)
    se = 5 * math.sqrt(rate**2 * (1 - rate**2) / n)
    assert abs((now[:, 1:] & now[:, :-1]).mean() - rate**2) < se
    assert abs((now[1:] & now[:-1]).mean() - rate**2) < se
    assert abs((now & later).mean() - rate**2) < se
    triple = now[:, 2:] & now[:, 1:-1] & now[:, :-2]
    assert abs(triple.mean() - rate**3) < 5 * math.sqrt(rate**3 / n)


def test_masks_of_growing_rates_are_nested():
    small, large = mask((64, 64), 0.2), mask((64, 64), 0.7)
    assert (small <= large).all() and small.any() and (small != large).any()


def test_rate_one_keeps_everything():
    assert mask((64, 64), 1.0).all()


def test_a_schedule_is_read_at_the_step():
    rate = optax.linear_schedule(1.0, 0.2, 8)
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_array_equal(
            mask((64,), rate, step=4), mask((64,), 0.6, step=4)
        )


def test_mask_depends_on_key_step_path_and_index_alone():
    params = {"a": jnp.ones((4, 6)), "b": {"c": jnp.ones(6, jnp.bfloat16)}}
    here = ot.dropout_mask(params, 0.5, key=3, step=7)
    np.testing.assert_array_equal(here["a"], mask((4, 6), 0.5, key=3, step=7, path="a"))
    alone = ot.dropout_mask({"b": {"c": jnp.ones(6)}}, 0.5, key=3, step=7)
    np.testing.assert_array_equal(here["b"]["c"], alone["b"]["c"])
    traced = jax.jit(lambda k, s: ot.dropout_mask(params, 0.5, key=k, step=s))
    words = jax.random.key_data(jax.random.key(3, impl="threefry2x32"))
    jax.tree.map(np.testing.assert_array_equal, traced(words, 7), here)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "y"), P("x", "y"), P()])
@pytest.mark.parametrize("granularity", ["element", "row", "leaf"])
def test_mask_does_not_depend_on_sharding(kind, spec, granularity):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(kind, kind))
    leaf = jax.device_put(jnp.ones((8, 16)), NamedSharding(mesh, spec))
    how = {"key": 1, "step": 2, "granularity": granularity}
    sharded = ot.dropout_mask({"w": leaf}, 0.5, **how)["w"]
    np.testing.assert_array_equal(sharded, mask((8, 16), 0.5, **how))


def test_other_leaves_are_arrays_scalars_and_holes():
    tree = {"s": 1.0, "n": None, "m": optax.MaskedNode(), "z": jnp.ones((0, 3))}
    got = ot.dropout_mask(tree, 0.5, key=0, step=0)
    assert got["n"] is None and got["m"] == optax.MaskedNode()
    assert got["s"].shape == () and got["z"].shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_rate": 0.0}, r"keep_rate must lie in \(0, 1\], got 0.0"),
        ({"keep_rate": 1.5}, "keep_rate must lie in"),
        ({"keep_rate": float("nan")}, "keep_rate must lie in"),
        ({"granularity": "column"}, "granularity must be one of"),
        ({"key": -1}, "key must lie in"),
    ],
)
def test_bad_values(arguments, message):
    good: dict[str, Any] = {"keep_rate": 0.5, "key": 0, "step": 0}
    with pytest.raises(ValueError, match=message):
        ot.dropout_mask(jnp.ones(3), **{**good, **arguments})


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (-1, ValueError, r"step must lie in \[0, 2\*\*31\)"),
        (2**31, ValueError, "step must lie in"),
        (1.5, TypeError, "step must be a whole number"),
        (True, TypeError, "step must be a whole number"),
        (None, TypeError, "step must be a whole number"),
        ("x", TypeError, "step must be a whole number"),
        (jnp.arange(2), TypeError, "step must be a whole number"),
    ],
)
def test_bad_steps(step, error, message):
    with pytest.raises(error, match=message):
        ot.dropout_mask(jnp.ones(3), 0.5, key=0, step=step)
