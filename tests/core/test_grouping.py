"""Sums as GPUs take them are sums, and other platforms do not take them so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from optaxtricks._core.grouping import acting, read_by_few, total, totals


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """What is traced meanwhile, for shapes that were not traced before."""
    choose = lambda *args, cuda, default: cuda(*args)
    monkeypatch.setattr(jax.lax, "platform_dependent", choose)


@pytest.mark.parametrize("axes", [None, (), (1,), (0, 2)])
def test_sums_of_gpus_are_sums(as_on_a_gpu, axes):
    x = jnp.arange(91.0).reshape(7, 13, 1)
    want = np.asarray(x).sum(axis=axes)
    np.testing.assert_array_equal(acting(total(x, axes)), want)
    np.testing.assert_array_equal(totals(x, x * 2), [4095, 8190])


def step(shapes):
    values = np.random.default_rng(0).standard_normal(68).astype(np.float32)
    params = {path: jnp.asarray(values.reshape(n)) for path, n in shapes.items()}
    params["bad"] = params["bad"].at[0, 0].set(jnp.nan)
    inner = ot.shrink_nonfinite(ot.scale_by_param_rms())
    tx = ot.magma(inner, key=0, keep_rate=1.0)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    return [x.reshape(68) for x in jax.tree.leaves((updates, state.mu))]


def test_steps_of_gpus_are_those_of_other_machines(request):
    want = step({"matrix": (4, 17), "bad": (2, 34)})
    request.getfixturevalue("as_on_a_gpu")
    # Other shapes of the same values, lest it calls what was traced for those.
    for x, y in zip(step({"matrix": (17, 4), "bad": (34, 2)}), want, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_only_gpus_read_what_others_read():
    traced = jax.jit(total).trace(jnp.ones((3, 5)))
    text = lambda platform: traced.lower(lowering_platforms=(platform,)).as_text()
    assert "optimization_barrier" in text("cuda")
    assert "optimization_barrier" not in text("cpu") + text("tpu")


def test_four_leaves_of_a_shape_read_the_same(as_on_a_gpu):
    words = jnp.asarray([3, 7], jnp.uint32)
    leaves = [jnp.ones(5)] * 5 + [jnp.ones(6)] + [jnp.ones(5, jnp.bfloat16)]
    found = read_by_few(words, leaves)
    groups = [[pair is other for other in found].index(True) for pair in found]
    assert groups == [0, 0, 0, 0, 4, 5, 6]
    for pair in found:
        np.testing.assert_array_equal(jnp.stack(pair), words)
