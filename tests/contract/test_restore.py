"""Saved in the middle of a run and read back, a state continues to the same bits."""

from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import optaxtricks as ot
from tests.cases import CASES, Case
from tests.problems import assert_same, gradients, layout

each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def midway() -> dict[str, Any]:
    """The state of every case after two steps."""
    return {name: _advance(case, None, range(2))[1] for name, case in CASES.items()}


@pytest.fixture(scope="module")
def from_orbax(
    midway: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The same states, written by Orbax all at once and read back."""
    path: Path = tmp_path_factory.mktemp("orbax") / "states"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, midway)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path, jax.eval_shape(lambda: midway))


def _advance(case: Case, state: Any, seeds: range) -> Any:
    """The last updates and state, continuing from `state` or from the start."""
    params = case.params(jnp.bfloat16)
    tx: Any = case.make(params)
    state = tx.init(params) if state is None else state
    updates = None
    # A fixture of the module comes before the one that minds the promotion.
    with jax.numpy_dtype_promotion(case.promotion):
        for seed in seeds:
            grads = gradients(params, seed)
            updates, state = tx.update(grads, state, params, **case.extra_args(params))
    return updates, state


@each_case
def test_flax_msgpack_round_trip(name: str, midway: dict[str, Any]) -> None:
    case, state = CASES[name], midway[name]
    params = case.params(jnp.bfloat16)
    data = flax.serialization.to_bytes(state)
    restored = flax.serialization.from_bytes(case.make(params).init(params), data)
    assert_same(restored, state)
    # Flax gives NumPy arrays, whose bfloat16 arithmetic is not JAX's.
    restored = jax.tree.map(jnp.asarray, restored)
    want = _advance(case, state, range(2, 4))
    assert_same(_advance(case, restored, range(2, 4)), want)


@each_case
def test_orbax_round_trip(
    name: str, midway: dict[str, Any], from_orbax: dict[str, Any]
) -> None:
    case, state, restored = CASES[name], midway[name], from_orbax[name]
    assert_same(restored, state)
    assert layout(restored) == layout(state)
    want = _advance(case, state, range(2, 4))
    assert_same(_advance(case, restored, range(2, 4)), want)


def test_a_checkpoint_read_without_a_target_names_the_cure() -> None:
    params = {"w": jnp.ones(2)}
    tx = ot.scale_by_lion()
    data = flax.serialization.to_bytes(tx.init(params))
    for state in (
        flax.serialization.msgpack_restore(data),
        flax.serialization.from_bytes(None, data),
        jax.tree.leaves(tx.init(params)),
    ):
        with pytest.raises(TypeError, match=r"restore it into the abstract state jax"):
            tx.update(params, state)
