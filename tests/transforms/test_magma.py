"""Magma against the paper's equations in NumPy, and its mask against SkipUpdate's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.problems import assert_same_leaves, gradients, small_tree, values

KEY = 11


def reference(
    grads: list[np.ndarray], kept: list[bool], *, tau: float, b1: float, gamma: float
) -> list[np.ndarray]:
    """Updates of one block around SGD at rate 1, from the equations."""
    mu, s, out = np.zeros_like(grads[0]), 0.5, []
    for g, z in zip(grads, kept, strict=True):
        mu = b1 * mu + (1 - b1) * g
        cosine = (mu * g).sum() / np.sqrt((mu**2).sum() * (g**2).sum())
        s = gamma * s + (1 - gamma) / (1 + np.exp(-cosine / tau))
        out.append(z * s * -g)
    return out


def _run(tx: Any, grads: list[Any]) -> tuple[list[Any], Any]:
    state, out = tx.init(grads[0]), []
    for g in grads:
        updates, state = tx.update(g, state)
        out.append(updates)
    return out, state


def _kept(tree: Any, rate: float, step: int) -> Any:
    return ot.dropout_mask(tree, rate, key=KEY, step=step, granularity="leaf")


@pytest.mark.parametrize("settings", [(2.0, 0.9, 0.9), (0.5, 0.5, 0.3)])
def test_the_equations(settings: tuple[float, float, float]) -> None:
    tau, b1, gamma = settings
    grads = [{"w": values((5, 4), jnp.float32, seed)} for seed in range(8)]
    tx = ot.magma(optax.sgd(1.0), key=KEY, temperature=tau, b1=b1, smoothing=gamma)
    got, _ = _run(tx, grads)
    kept = [bool(_kept(grads[0], 0.5, t)["w"].all()) for t in range(8)]
    assert 0 < sum(kept) < 8
    arrays = [np.asarray(g["w"], np.float64) for g in grads]
    want = reference(arrays, kept, tau=tau, b1=b1, gamma=gamma)
    for u, w in zip(got, want, strict=True):
        np.testing.assert_allclose(u["w"], w, rtol=2e-6)


def test_momentum_is_that_of_adam() -> None:
    grads = [gradients(small_tree(), seed) for seed in range(3)]
    adam = optax.scale_by_adam(b1=0.8)
    with jax.numpy_dtype_promotion("standard"):
        _, state = _run(ot.magma(adam, key=KEY, b1=0.8), grads)
    assert_same_leaves(state.mu, state.inner.mu, ulps=8)


def test_whole_leaves_are_skipped_as_by_update_dropout() -> None:
    params = small_tree()
    tx = ot.magma(optax.sgd(1.0), key=KEY)
    skip = ot.update_dropout(0.5, key=KEY, granularity="leaf", rescale=False)
    grads = [gradients(params, seed) for seed in range(6)]
    ours, _ = _run(tx, grads)
    theirs, _ = _run(skip, grads)
    zero = lambda tree: jax.tree.map(lambda u: bool((u == 0).all()), tree)
    assert [zero(tree) for tree in ours] == [zero(tree) for tree in theirs]


def test_without_skips_aligned_gradients_approach_one_factor() -> None:
    g = jnp.asarray([3.0, -4.0])
    got, state = _run(ot.magma(optax.sgd(1.0), key=0, keep_rate=1.0), [g] * 200)
    limit = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(got[-1], -limit * np.asarray(g), rtol=1e-5)
    assert float(state.scores[0]) == pytest.approx(limit, rel=1e-5)


def test_a_gradient_of_zeros_has_no_direction() -> None:
    _, state = _run(ot.magma(optax.sgd(1.0), key=0), [jnp.zeros(3)] * 3)
    assert float(state.scores[0]) == 0.5


def test_a_skipped_leaf_stays_even_if_its_update_is_nan() -> None:
    bad: Any = {"a": jnp.full(2, jnp.nan), "b": jnp.ones(2)}
    for step in range(20):
        tx = ot.magma(optax.sgd(1.0), key=step)
        updates: Any = tx.update(bad, tx.init(bad))[0]
        keep = ot.dropout_mask(bad, 0.5, key=step, step=0, granularity="leaf")
        assert bool((updates["a"] == 0).all()) == (not keep["a"].any())


def test_complex_gradients_align_as_their_real_parts_do() -> None:
    grads = [values((6,), jnp.complex64, seed) for seed in range(4)]
    flat = [jnp.concatenate([g.real, g.imag]) for g in grads]
    tx = ot.magma(optax.sgd(1.0), key=0)
    (_, one), (_, two) = _run(tx, grads), _run(tx, flat)
    np.testing.assert_allclose(one.scores[0], two.scores[0], rtol=1e-6)


def test_narrow_floats_are_summed_in_float32() -> None:
    wide = [values((64,), jnp.float32, seed) for seed in range(3)]
    narrow = [g.astype(jnp.bfloat16) for g in wide]
    tx = ot.magma(optax.sgd(1.0), key=0)
    got, state = _run(tx, narrow)
    _, want = _run(tx, [g.astype(jnp.float32) for g in narrow])
    assert got[0].dtype == jnp.bfloat16
    assert_same_leaves(state.scores, want.scores, ulps=2)


def test_a_schedule_of_the_rate_counts_steps() -> None:
    rate: Any = lambda step: jnp.where(step < 2, 1, 0.5)
    tx = ot.magma(optax.sgd(1.0), key=KEY, keep_rate=rate)
    g = jnp.ones(3)
    got, _ = _run(tx, [g] * 2)
    assert all((u != 0).all() for u in got)


@pytest.mark.parametrize("rate", [1.5, float("nan")])
def test_a_schedule_out_of_range_does_not_pass_for_a_good_one(rate: float) -> None:
    tx = ot.magma(optax.sgd(1.0), key=KEY, keep_rate=lambda step: rate)
    got, state = _run(tx, [jnp.ones(3)])
    assert jnp.isnan(got[0]).all() and jnp.isfinite(state.scores[0])


def test_a_schedule_must_give_a_scalar() -> None:
    tx = ot.magma(optax.sgd(1.0), key=KEY, keep_rate=lambda step: jnp.ones(3))
    with pytest.raises(ValueError, match="keep_rate must give a scalar at each step"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_rate": 0.0}, r"keep_rate must lie in \(0, 1\], got 0.0"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"b1": 1.0}, r"b1 must lie in \(0, 1\), got 1.0"),
        ({"smoothing": 1.5}, r"smoothing must lie in \(0, 1\), got 1.5"),
        ({"key": -1}, r"key must lie in \[0, 2\*\*64\), got -1"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ot.magma(optax.sgd(1.0), **{"key": 0, **arguments})


def test_inner_must_be_an_optimizer() -> None:
    wrong: Any = 1.0
    with pytest.raises(TypeError, match="inner must be an optax"):
        ot.magma(wrong, key=0)


@pytest.mark.parametrize(
    ("size", "cosine"), [(1e-23, 0.0), (1e-17, 1.0), (1e17, 1.0), (1e20, np.nan)]
)
def test_the_cosine_where_squares_leave_float32(size: float, cosine: float) -> None:
    tx = ot.magma(optax.sgd(1.0), key=KEY, smoothing=0.5)
    _, state = _run(tx, [size * jnp.array([3.0, -4.0])])
    want = 0.25 + 0.5 / (1 + np.exp(-cosine / 2))
    np.testing.assert_allclose(state.scores[0], want, rtol=1e-6)
