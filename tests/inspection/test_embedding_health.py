"""The measure of drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from tests.problems import values


def test_equals_the_definition():
    table, decay = 30 * values((50, 4, 2), jnp.float32, 1), 0.02
    size = np.abs(np.asarray(table, np.float64)) * decay
    got = jax.jit(ot.embedding_health)(table, decay)
    stuck = (size > 0.5).reshape(50, -1)
    assert 0.1 < stuck.mean() < 0.9
    assert float(got["max_times_decay"]) == pytest.approx(size.max(), rel=1e-6)
    assert float(got["stuck_entries"]) == pytest.approx(stuck.mean(), rel=1e-6)
    rows = (stuck.mean(axis=1) > 0.5).mean()
    assert float(got["stuck_rows"]) == pytest.approx(rows, rel=1e-6)


def test_only_all_entries_are_a_fraction_of_one():
    """Though float32 tells no count of 2**25 from the next."""
    table = jnp.full((2**25 + 1, 1), 9, jnp.bfloat16).at[7].set(0)
    got = ot.embedding_health(table, 0.1)
    assert 0.9999999 < float(got["stuck_entries"]) < 1
    assert 0.9999999 < float(got["stuck_rows"]) < 1


def test_half_of_a_row_is_not_more_than_half():
    table = jnp.array([[9, 9, 0, 0], [9, 9, 9, 0], [9, 0, 0, 0]], jnp.float32)
    assert float(ot.embedding_health(table, 0.1)["stuck_rows"]) == np.float32(1 / 3)


@pytest.mark.parametrize(
    ("table", "decay", "error", "message"),
    [
        (jnp.ones((2, 2)), 0.0, ValueError, "weight_decay must be positive"),
        (jnp.ones(()), 0.1, ValueError, r"table must have rows, got shape \(\)"),
        (jnp.ones((0, 3)), 0.1, ValueError, "table must have rows"),
        (
            jnp.ones((2, 2), int),
            0.1,
            TypeError,
            "table must hold real floating-point numbers",
        ),
    ],
    ids=str,
)
def test_bad_arguments(table, decay, error, message):
    with pytest.raises(error, match=message):
        ot.embedding_health(table, decay)
