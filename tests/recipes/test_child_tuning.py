"""Child-Tuning against the published optimizer's numbers, and what it promises."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

GRADS = (0.5, -0.25, 0.1)
RATE, DECAY, EPS = 0.1, 0.1, 1e-6
ONE = np.array([True])
NONE = np.array([False])


@pytest.fixture(autouse=True)
def promotion():
    """Optax's own optimizers need JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def published(grads, *, mask=(1, 1, 1), rescale=1.0, decay=DECAY, b1=0.9, b2=0.999):
    """ChildTuningAdamW for one entry: epsilon outside the correction, decay last."""
    theta, m, v, path = 1.0, 0.0, 0.0, []
    for t, (g, keep) in enumerate(zip(grads, mask, strict=True), start=1):
        g = g * keep * rescale
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        size = RATE * np.sqrt(1 - b2**t) / (1 - b1**t)
        theta -= size * m / (np.sqrt(v) + EPS)
        theta -= RATE * decay * theta
        path.append(theta)
    return path


def published_adamw():
    """The published step as a transformation, to be wrapped like any other."""

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return zeros, zeros, jnp.zeros((), jnp.int32)

    def update(updates, state, params=None):
        m, v, t = state[0], state[1], state[2] + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, updates)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, updates)
        size = RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        move = lambda m, v, p: (p - size * m / (jnp.sqrt(v) + EPS)) * 0.99 - p
        return jax.tree.map(move, m, v, params), (m, v, t)

    return optax.GradientTransformation(init, update)


def walk(tx, grads=GRADS):
    params: Any = jnp.ones(1)
    state, path = tx.init(params), []
    for g in grads:
        updates, state = tx.update(jnp.full(1, g), state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params).item())
    return path


def adamw(decay=DECAY):
    return optax.adamw(RATE, eps=EPS, weight_decay=decay)


def test_the_published_order_of_operations():
    want = [0.891006260914, 0.855730323454, 0.815965646429]
    np.testing.assert_allclose(published(GRADS), want, rtol=1e-11)
    for decay_frozen in (False, True):
        tx = ot.child_tuning_d(published_adamw(), ONE, decay_frozen=decay_frozen)
        np.testing.assert_allclose(walk(tx), want, rtol=1e-5)


def test_over_optax_adamw():
    want = [0.8900002, 0.854466561422, 0.814397635348]
    np.testing.assert_allclose(walk(ot.child_tuning_d(adamw(), ONE)), want, rtol=1e-5)


def test_entries_outside_the_mask_stay_or_drift_by_decay_alone():
    drift = [0.99, 0.9801, 0.970299]
    np.testing.assert_allclose(published(GRADS, mask=(0, 0, 0)), drift, rtol=1e-12)
    for inner in (adamw(), published_adamw()):
        assert walk(ot.child_tuning_d(inner, NONE)) == [1, 1, 1]
        frozen = ot.child_tuning_d(inner, NONE, decay_frozen=True)
        np.testing.assert_allclose(walk(frozen), drift, rtol=1e-6)


def test_untrained_entries_keep_every_bit():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((16, 8)), jnp.float32)}
    mask = ot.top_fraction_mask({"w": jnp.abs(params["w"])}, 0.3)
    start = np.asarray(params["w"])
    tx = ot.child_tuning_d(optax.adamw(0.1, weight_decay=0.5), mask)

    def step(carry, key):
        params, state = carry
        grads = {"w": jax.random.normal(key, (16, 8))}
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), 50)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    moved = np.asarray(params["w"]).view(np.uint32) != start.view(np.uint32)
    np.testing.assert_array_equal(moved, mask["w"])


def test_task_free_variant_masks_gradients_before_the_moments():
    """The vectors of p = 0.25 and masks 1, 0, 1: the second step moves on momentum."""
    want = [0.900001581114, 0.832996815669, 0.769669671837]
    masks = (1, 0, 1)
    got = published(GRADS, mask=masks, rescale=4.0, decay=0.0)
    # The published epsilon is larger by 1 / sqrt(1 - b2**t) than Optax's.
    np.testing.assert_allclose(got, want, atol=1e-4)
    seeds = (seed for seed in range(1000) if drawn(seed) == list(masks))
    tx = ot.child_tuning_f(adamw(decay=0.0), 0.25, key=next(seeds))
    np.testing.assert_allclose(walk(tx), got, atol=1e-4)


def drawn(seed):
    draw = lambda step: ot.dropout_mask(jnp.ones(1), 0.25, key=seed, step=step)
    return [int(draw(step)[0]) for step in range(3)]


def test_task_free_variant_at_rate_one_is_the_optimizer():
    assert walk(ot.child_tuning_f(adamw(), 1.0, key=0)) == walk(adamw())


def test_rescaling_scales_gradients_and_not_updates():
    mask = np.array([True, False, False, True])
    grads = jnp.ones(4)
    tx = ot.child_tuning_d(optax.sgd(1.0), mask, rescale=True)
    assert tx.update(grads, tx.init(grads))[0].tolist() == [-2, 0, 0, -2]
    tx = ot.child_tuning_d(optax.scale_by_sign(), mask, rescale=True)
    assert tx.update(grads, tx.init(grads))[0].tolist() == [1, 0, 0, 1]


def test_the_state_holds_one_mask_at_one_bit_an_entry():
    params = jnp.ones((64, 32))
    mask = np.arange(2048).reshape(64, 32) % 3 == 0
    for options in ({}, {"rescale": True}, {"decay_frozen": True}):
        state = ot.child_tuning_d(optax.sgd(0.1), mask, **options).init(params)
        assert [x.nbytes for x in state.mask.bits] == [2048 // 8]
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        assert held - 2048 // 8 == (4 if "rescale" in options else 0)


@pytest.mark.parametrize("options", [{}, {"rescale": True}, {"decay_frozen": True}])
def test_it_is_the_chain_of_a_mask_the_optimizer_and_a_mask(options):
    rng = np.random.default_rng(3)
    mask = rng.random((8, 5)) < 0.4
    params = jnp.asarray(rng.standard_normal((8, 5)), jnp.float32)
    grads = params.at[~mask].set(jnp.nan)
    behind = [] if options.get("decay_frozen") else [ot.keep_entries(mask)]
    ahead = ot.keep_entries(mask, rescale=options.get("rescale", False))
    chain = optax.chain(ahead, adamw(), *behind)
    tx = ot.child_tuning_d(adamw(), mask, **options)
    one, other = tx.init(params), chain.init(params)
    for _ in range(2):
        got, one = tx.update(grads, one, params)
        want, other = chain.update(grads, other, params)
        np.testing.assert_array_equal(
            np.asarray(got).view(np.uint32), np.asarray(want).view(np.uint32)
        )


def test_extra_arguments_reach_the_inner_optimizer():
    inner = optax.scale_by_polyak()
    grads = jnp.array([3.0, 4.0])
    for tx in (
        ot.child_tuning_d(inner, np.array([True, True])),
        ot.child_tuning_f(inner, 1.0, key=0),
    ):
        got, _ = tx.update(grads, tx.init(grads), grads, value=0.5)
        want, _ = inner.update(grads, inner.init(grads), grads, value=0.5)
        np.testing.assert_array_equal(got, want)


def test_errors():
    with pytest.raises(TypeError, match=r"inner must be an optax.GradientTransf"):
        ot.child_tuning_d(**{"inner": ONE, "mask": adamw()})
    with pytest.raises(TypeError, match=r"inner must be an optax.GradientTransf"):
        ot.child_tuning_f(**{"inner": 0.5, "keep_rate": 0.5, "key": 0})
    tx = ot.child_tuning_d(adamw(), ONE)
    with pytest.raises(TypeError, match="child_tuning_d needs a state of type Child"):
        tx.update(jnp.ones(1), (), jnp.ones(1))
    with pytest.raises(TypeError, match="decay_frozen must be True or False"):
        ot.child_tuning_d(adamw(), ONE, **{"decay_frozen": 1})
    with pytest.raises(ValueError, match="keep_rate must lie"):
        ot.child_tuning_f(adamw(), 0.0, key=0)
