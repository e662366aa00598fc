"""A row whose sign never changes: where it stands after how many steps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot

START = 0.02
DECAY = 0.01
RATE = 1e-3
ROWS_RATE = 1e-3  # of steps relative to the row's size


def plain(name, rate, decay):
    """Lion, or Tiger with steps of one size: the same law."""
    if name == "lion":
        return ot.lion(rate, weight_decay=decay)
    return ot.tiger(rate, weight_decay=decay, relative=False)


def by_row(rate=ROWS_RATE, decay=DECAY):
    """Tiger as published, steps relative to each row's size."""
    return ot.tiger(rate, weight_decay=decay, embeddings="emb")


def path(tx, steps, *, start=START, occurrences=None):
    """The row's first entry before the first step and after each step.

    The gradient is -1, from the `occurrences`-th step on 0.
    """
    params: Any = {"emb": jnp.full((1, 4), start)}

    def step(carry: Any, t: Any) -> Any:
        params, state = carry
        last = steps if occurrences is None else occurrences
        grads = {"emb": jnp.full((1, 4), jnp.where(t < last, -1.0, 0.0))}
        updates, state = tx.update(grads, state, params)
        params: Any = optax.apply_updates(params, updates)
        return (params, state), params["emb"][0, 0]

    run = jax.jit(lambda carry, ts: jax.lax.scan(step, carry, ts)[1])
    values = run((params, tx.init(params)), jnp.arange(steps))
    return np.concatenate([[start], values])


def law(t, rate, decay, start=START):
    """Steps of one size against decay."""
    return 1 / decay + (start - 1 / decay) * (1 - rate * decay) ** t


def rounding(value, t, rate, decay):
    """What float32 may do to `law`.

    A step errs by half a unit in the last place at most (and by a little more for the
    update's own arithmetic, hence the factor), and decay shrinks earlier errors.
    """
    unit = np.spacing(np.abs(value).astype(np.float32))
    return 1.1 * 0.5 * unit * (1 - (1 - rate * decay) ** t) / (rate * decay) + unit


def first_at(values, level):
    return int(np.argmax(values >= level))


@pytest.mark.parametrize("name", ["lion", "tiger"])
def test_plain_rate_at_the_listed_times(name):
    times = np.array([1_000, 10_000, 100_000, 200_000])
    values = path(plain(name, RATE, DECAY), 200_000)[times]
    expected = law(times, RATE, DECAY)
    np.testing.assert_allclose(expected, [1.0148, 9.534, 63.22, 86.47], rtol=1e-4)
    error = np.abs(values - expected)
    assert (error <= rounding(expected, times, RATE, DECAY)).all(), error
    # Half a unit in the last place is a sizable part of the last steps.
    assert (rounding(expected, times, RATE, DECAY) < 0.005 * expected).all()


@pytest.mark.parametrize("name", ["lion", "tiger"])
@pytest.mark.parametrize("start", [0.02, -3.0, 5.0])
@pytest.mark.parametrize(("rate", "decay"), [(0.1, 1.0), (0.01, 2.0), (0.5, 0.25)])
def test_plain_rate_at_every_step(name, rate, decay, start):
    values = path(plain(name, rate, decay), 500, start=start)
    times = np.arange(501)
    expected = law(times, rate, decay, start)
    largest = np.maximum(np.abs(expected), abs(start))
    error = np.abs(values - expected)
    assert (error <= rounding(largest, times, rate, decay)).all(), error.max()


@pytest.mark.parametrize("name", ["lion", "tiger"])
def test_one_occurrence_is_enough(name):
    """The momentum fades, its sign does not: one gradient, then a thousand zeros.

    At the thousandth step the momentum is 4e-7 (Lion) or 1e-17 (Tiger), both far
    above the smallest normal number, so flushing to zero plays no part.
    """
    tx = plain(name, RATE, DECAY)
    once = path(tx, 1_000, occurrences=1)
    np.testing.assert_array_equal(once, path(tx, 1_000))


def test_rows_follow_the_logistic_law():
    """The recursion lags the law, its continuous limit.

    A step multiplies by 1 + x where the law has e^x, x = rate * (1 - decay * a), so
    the recursion is late by about rate / 2 of the time on the steep part: measured
    2, 3, 4 and 6 steps.
    """
    values = path(by_row(), 20_000)
    levels = np.array([1.0, 10.0, 50.0, 90.0])
    reached = np.array([first_at(values, level) for level in levels])
    np.testing.assert_allclose(reached, [3924, 6323, 8521, 10718], atol=3)
    by_law = np.log((1 / START - DECAY) / (1 / levels - DECAY)) / ROWS_RATE
    assert (reached >= by_law).all()
    assert (reached - by_law <= 0.6 * ROWS_RATE * reached + 3).all()
    at = values[[1_000, 5_000, 10_000, 20_000]]
    np.testing.assert_allclose(at, [0.0543, 2.876, 81.45, 99.999], rtol=1e-3)
    times = np.arange(20_001)
    logistic = 1 / (DECAY + (1 / START - DECAY) * np.exp(-ROWS_RATE * times))
    np.testing.assert_allclose(values, logistic, rtol=4e-3)


def test_rows_are_much_faster_than_a_plain_rate():
    rows = path(by_row(), 20_000)
    lion = path(plain("lion", RATE, DECAY), 20_000)
    level = 0.9 / DECAY
    steps = first_at(rows, level)
    assert 10_000 < steps < 11_000
    assert lion[steps] < 0.11 / DECAY and lion[-1] < 0.19 / DECAY
    plain_steps = np.log(0.1 / (1 - START * DECAY)) / np.log1p(-RATE * DECAY)
    assert plain_steps / steps == pytest.approx(21.5, abs=0.1)


@pytest.mark.parametrize("moments", ["decay", "freeze"])
@pytest.mark.parametrize(
    "inner",
    [plain("lion", RATE, DECAY), plain("tiger", RATE, DECAY), by_row()],
    ids=["lion", "tiger", "tiger by row"],
)
def test_lazy_rows_stop_the_drift(inner, moments):
    lazy = ot.lazy_rows(inner, tables="emb", moments=moments)
    values, adrift = path(lazy, 300, occurrences=5), path(inner, 300, occurrences=5)
    np.testing.assert_array_equal(values[:6], adrift[:6])
    assert (np.diff(adrift) > 0).all()
    assert (values[5:] == values[5]).all()
