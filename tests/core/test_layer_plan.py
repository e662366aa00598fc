"""A plan for the layers of a tree is kept, and so is what it compiled."""

import jax
import jax.numpy as jnp
import pytest

import optaxtricks as ot
from tests.problems import assert_same


def test_a_second_init_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    params = {"layers": jnp.ones((3, 4, 2))}
    tx = ot.per_layer(ot.gradient_dropout(0.5, key=0), "layers")
    with jax.log_compiles():
        first = tx.init(params)
        assert "_init_all" in caplog.text
        caplog.clear()
        second = tx.init(params)
    assert "Compiling" not in caplog.text
    assert_same(first, second)
