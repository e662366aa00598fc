"""Notes in traced programs: asked for, counted once, and gone when compiled."""

from typing import Any

import jax
import jax.numpy as jnp

from optaxtricks._core.factor_notes import asking, note, noted


def _found(step: Any) -> Any:
    with asking():
        return noted(jax.make_jaxpr(step)(jnp.ones(2)))


def test_factors_of_a_path_are_multiplied_up() -> None:
    step = lambda x: note(note(note(x, "a/b", 0.5), "a/b", [1.0, 2.0]), "c", 3)
    found = _found(step)
    assert {path: value.tolist() for path, value in found.items()} == {
        "a/b": [0.5, 1.0],
        "c": 3.0,
    }


def test_what_is_traced_is_not_known() -> None:
    assert _found(lambda x: note(x, "a", x[0]) + note(x, "b", 2.0))["a"] is None
    assert _found(lambda x: note(note(x, "a", x[0]), "a", 2.0)) == {"a": None}


def test_only_what_takes_part_counts_and_of_branches_one() -> None:
    half = lambda x: note(x, "a", 0.5)

    def step(x: Any) -> Any:
        jax.eval_shape(half, x)
        x = jax.lax.cond(x[0] > 0, half, half, x)
        x = jax.lax.cond(x[0] > 0, half, lambda x: x, x)
        return jax.lax.scan(lambda x, _: (half(x), None), x, length=1)[0]

    assert _found(step)["a"].tolist() == 0.125
    jitted = jax.jit(half)
    for _ in range(2):  # the second finds it traced
        assert _found(lambda x: jitted(jitted(x)))["a"].tolist() == 0.25


def test_nothing_is_left_without_a_question_nor_in_a_compiled_program() -> None:
    x = jnp.ones(2)
    half = lambda x: note(0.5 * x, "a", 0.5)
    assert half(x).tolist() == [0.5, 0.5]
    assert noted(jax.make_jaxpr(half)(x)) == {}
    plain = jax.jit(half).lower(x).as_text()
    with asking():
        asked = jax.jit(lambda x: half(x)).lower(x).as_text()
    assert asked == plain
