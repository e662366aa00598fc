"""Tiger's published trajectory, and Adam beside a sign method."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.problems import assert_same, gradients, small_tree

NAN = float("nan")


def path(tx, params, grads):
    """The parameters after every step."""
    state, out = tx.init(params), []
    update = jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out, state


def kernel(entries):
    """A matrix of one row: vectors take another rate."""
    return jnp.asarray([entries], jnp.float32)


def published(theta, grads, *, rate=0.01, beta=0.965, decay=0.01, shrink=0.99):
    """bojone/tiger for one matrix, with an accumulation of one."""
    theta, m, out = np.asarray(theta, float), np.zeros(len(theta)), []
    for g in grads:
        if np.isnan(g).any():
            theta = theta * shrink
        else:
            m = beta * m + (1 - beta) * np.asarray(g, float)
            size = rate * np.sqrt((theta**2).mean())
            theta = theta - size * (np.sign(m) + decay * theta)
        out.append(theta)
    return out


T7 = {"learning_rate": 0.01, "rms_floor": 0.0}
THETA = (0.3, -0.4)


@pytest.mark.parametrize(
    ("k", "grads", "want", "momentum"),
    [
        (
            1,
            [(1, -2), (-3, 1), (0.5, 0)],
            {
                0: (0.2964538595, -0.3964503240),
                1: (0.2999438949, -0.3929360341),
                2: (0.3034288723, -0.3894268373),
            },
            (-0.051232125, -0.03141075),
        ),
        (
            2,
            [(1, -2), (-3, 1), (0.5, 0), (0.5, -1)],
            {
                0: THETA,
                1: (0.3035249273, -0.3964503240),
                2: (0.3035249273, -0.3964503240),
                3: (0.3070447935, -0.3929057446),
            },
            None,
        ),
        (
            1,
            [(1, -2), (NAN, 1), (0.5, 0)],
            {1: (0.2934893209, -0.3924858207), 2: (0.2900137419, -0.3890068111)},
            None,
        ),
        (
            2,
            [(1, -2), (-3, 1), (NAN, 0), (0.5, -1)],
            {3: (0.3039744517, -0.3889768257)},
            (-0.02625, -0.035),
        ),
    ],
    ids=["plain", "window", "nan", "nan in a window"],
)
def test_vector_t7(k, grads, want, momentum):
    tx = ot.tiger(accumulate_steps=k, **T7)
    got, state = path(tx, kernel(THETA), [kernel(g) for g in grads])
    for step, theta in want.items():
        np.testing.assert_allclose(got[step][0], theta, rtol=2e-6)
    if momentum is not None:
        mu = optax.tree.get(state, "mu")
        np.testing.assert_allclose(mu[0], momentum, rtol=1e-5)
    if k == 1:
        np.testing.assert_allclose(
            np.stack(got)[:, 0], published(THETA, grads), rtol=2e-6
        )


def test_vector_t7_vectors_and_scales():
    params = {"bias": jnp.asarray([0.2]), "gamma": jnp.asarray([1.2])}
    grads = {"bias": jnp.ones(1), "gamma": jnp.full(1, NAN)}
    (after,), _ = path(ot.tiger(**T7, shrink_to_one="gamma"), params, [grads])
    np.testing.assert_allclose(after["bias"], [0.195], rtol=1e-6)
    np.testing.assert_allclose(after["gamma"], [1.198], rtol=1e-6)


def test_vector_t7_embedding_rows():
    table = jnp.asarray([THETA, (0.0, 0.0)])
    (after,), _ = path(ot.tiger(**T7, embeddings=".*"), table, [jnp.ones((2, 2))])
    want = [(0.2964538595, -0.4035213918), (0.0, 0.0)]
    np.testing.assert_allclose(after, want, rtol=2e-6)


def test_a_floor_lets_a_zero_matrix_move():
    (after,), _ = path(ot.tiger(0.5), jnp.zeros((2, 2)), [jnp.ones((2, 2))])
    np.testing.assert_allclose(after, -0.5e-3 * np.ones((2, 2)), rtol=1e-6)
    (after,), _ = path(ot.tiger(**T7), jnp.zeros((2, 2)), [jnp.ones((2, 2))])
    assert not after.any()


@pytest.mark.parametrize("relative", [True, False])
def test_a_window_equals_one_step_on_its_mean(relative):
    params, k = small_tree(), 3
    rates = lambda window: jnp.where(window < 1, 0.5, 0.25)
    options = {"relative": relative, "embeddings": "emb" if relative else None}
    grads = [gradients(params, seed) for seed in range(2 * k)]
    got, _ = path(ot.tiger(rates, accumulate_steps=k, **options), params, grads)
    mean = lambda *leaves: sum(leaves) / k
    means = [jax.tree.map(mean, *grads[i : i + k]) for i in (0, k)]
    want, _ = path(ot.tiger(rates, **options), params, means)
    for step, after in enumerate(got):
        before = params if step < k - 1 else want[(step + 1) // k - 1]
        assert_same(after, before, ulps=8)


def test_not_relative_is_a_plain_signum():
    params = small_tree()
    grads = [gradients(params, seed) for seed in range(3)]
    plain = ot.tiger(0.1, beta=0.5, relative=False, scalar_factor=1.0, weight_decay=0.0)
    got, _ = path(plain, params, grads)
    signum = optax.chain(
        optax.ema(0.5, debias=False),
        optax.scale_by_sign(),
        optax.scale_by_learning_rate(0.1),
    )
    want, _ = path(signum, params, grads)
    assert_same(got, want, ulps=4)


def test_without_shrinking_nan_comes_through():
    tx = ot.tiger(0.1, shrink=None)
    (after,), _ = path(tx, jnp.ones((2, 2)), [jnp.asarray([[NAN, 1.0], [1.0, 1.0]])])
    assert np.isnan(after[0, 0]) and np.isfinite(after[1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embeddings": "w", "relative": False}, "embeddings needs relative=True"),
        ({"shrink": None, "shrink_to_one": "b"}, "shrink_to_one needs shrink"),
        ({"shrink": 1.0}, "shrink must lie in"),
        ({"rms_floor": -1.0}, "floor must be at least 0"),
        ({"embeddings": "x"}, "embeddings 'x' matches no leaf"),
        ({"embeddings": "b"}, "embeddings 'b' choose no matrix"),
        ({"shrink_to_one": "x"}, "^shrink_to_one 'x' matches no leaf"),
    ],
    ids=str,
)
def test_bad_arguments_of_tiger(options, message):
    params = {"b": jnp.ones(2), "w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match=message):
        ot.tiger(0.1, **options).init(params)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("sign", ["lion", "tiger"])
def test_mixed_sign_is_adam_there_and_the_sign_method_elsewhere(sign):
    params = small_tree()
    grads = [gradients(params, seed) for seed in range(4)]
    mixed = ot.mixed_sign(
        0.1, embeddings="emb", sign=sign, adam_learning_rate=0.5, weight_decay=0.25
    )
    got, _ = path(mixed, params, grads)
    adam, _ = path(optax.adam(0.5), params, grads)
    method = {"lion": ot.lion, "tiger": ot.tiger}[sign]
    other, _ = path(method(0.1, weight_decay=0.25), params, grads)
    for mine, left, right in zip(got, adam, other, strict=True):
        assert_same(mine, {**right, "emb": left["emb"]}, ulps=4)


@pytest.mark.usefixtures("standard_promotion")
def test_mixed_sign_accumulates_on_both_sides():
    rate = optax.linear_schedule(0.1, 0.0, 10)
    params = {"emb": jnp.ones((2, 2)), "w": jnp.ones((2, 2))}
    tx = ot.mixed_sign(rate, embeddings="emb", sign="tiger", accumulate_steps=2)
    grads = [gradients(params, seed) for seed in range(4)]
    got, _ = path(tx, params, grads)
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *grads[i : i + 2]) for i in (0, 2)]
    want, _ = path(optax.adam(rate), params, means)
    assert_same(got[0], params)
    assert_same(got[2], got[1])
    for mine, right in zip(got[1::2], want, strict=True):
        np.testing.assert_allclose(mine["emb"], right["emb"], rtol=1e-6)


def test_bad_arguments_of_mixed_sign():
    with pytest.raises(ValueError, match="sign must be one of"):
        ot.mixed_sign(0.1, embeddings="emb", sign="adam")
    with pytest.raises(ValueError, match="embeddings 'x' matches no leaf"):
        ot.mixed_sign(0.1, embeddings="x").init(small_tree())
    with pytest.raises(TypeError, match="unknown"):
        ot.mixed_sign(0.1, embeddings="emb", unknown=1)
