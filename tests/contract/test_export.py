"""Training steps that `jax.export` writes into bytes take the same steps when read."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from optaxtricks._core.serialized import serialized_state
from tests.cases import CASES
from tests.problems import applied, assert_same, gradients, small_tree, values

STATES = [name for name in ot.__all__ if name.endswith("State")]
# What Optax leaves to its users.
OF_OPTAX = (
    optax.EmptyState,
    optax.MaskedNode,
    optax.MaskedState,
    optax.ScaleByAdamState,
    optax.TraceState,
    optax.transforms.PartitionState,
)
for _node in OF_OPTAX:
    jax.export.register_namedtuple_serialization(
        _node, serialized_name=f"optax.{_node.__name__}"
    )


@pytest.fixture
def data() -> Any:
    """From a program, the one that its bytes stand for."""
    pytest.importorskip("flatbuffers", reason="JAX needs it to serialize")
    return lambda program: jax.export.deserialize(program.serialize())


def _step_of(tx: Any, **extra: Any) -> Any:
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return applied(params, updates), state, updates

    return jax.jit(step)


def _compare(data: Any, step: Any, params: Any, state: Any, grads: Any) -> None:
    read = data(jax.export.export(step)(params, state, grads))
    for _ in range(2):
        want = step(params, state, grads)
        assert_same(read.call(params, state, grads), want)
        params, state, _ = want


def _check_case(name: str, data: Any) -> None:
    case = CASES[name]
    params = case.params(jnp.float32)
    tx = case.make(params)
    step = _step_of(tx, **case.extra_args(params))
    _compare(data, step, params, tx.init(params), gradients(params))


@pytest.mark.parametrize("name", ["gradient_dropout", "compact_entries", "tiger"])
def test_a_step_is_serialized(name: str, data: Any) -> None:
    _check_case(name, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_serialized(name: str, data: Any) -> None:
    _check_case(name, data)


def _rows_and_others() -> tuple[Any, Any]:
    params = small_tree()
    rows = values((3, 8), jnp.float32, 4)
    sparse = ot.RowSparse.from_lookup(jnp.array([5, 2, 5]), rows, 16)
    return params, {**gradients(params), "emb": sparse}


@pytest.mark.parametrize("inner", [optax.trace(0.5), ot.scale_by_lion()])
def test_a_step_on_rows_is_serialized(inner: Any, data: Any) -> None:
    params, grads = _rows_and_others()
    tx = ot.lazy_rows(inner, tables="emb", moments="freeze")
    _compare(data, _step_of(tx), params, tx.init(params), grads)


@pytest.mark.parametrize("num_rows", [16, np.int64(16)])
def test_what_is_fixed_of_rows_comes_back(num_rows: Any, data: Any) -> None:
    """The number of rows, and whether indices are distinct."""
    rows = jnp.ones((2, 3))
    twice = ot.RowSparse(jnp.array([1, 1]), rows, num_rows)
    once = ot.RowSparse.from_lookup(jnp.array([1, 1]), rows, num_rows)
    read = data(jax.export.export(jax.jit(lambda *both: both))(twice, once))
    one, two = read.call(twice, once)
    assert (one.shape, one.distinct) == ((16, 3), False)
    assert (two.shape, two.distinct) == ((16, 3), True)
    with pytest.raises(ValueError, match="tree"):
        read.call(once, once)


@pytest.mark.parametrize("name", STATES)
def test_every_state_has_its_public_name(name: str) -> None:
    """Which is the one that bytes hold, so that it stands for good."""
    with pytest.raises(ValueError, match=f"serialized_name `optaxtricks.{name}`"):
        jax.export.register_namedtuple_serialization(
            getattr(ot, name), serialized_name="another"
        )


def test_a_module_can_be_reloaded() -> None:
    assert serialized_state(ot.TigerState) is ot.TigerState


def test_bytes_are_read_in_another_process(data: Any, tmp_path: Path) -> None:
    del data
    params, grads = _rows_and_others()
    tx = ot.lazy_rows(ot.scale_by_lion(), tables="emb", moments="freeze")
    program = jax.export.export(_step_of(tx))(params, tx.init(params), grads)
    file = tmp_path / "step"
    file.write_bytes(program.serialize())
    code = (
        "import jax, optaxtricks, pathlib\n"
        f"program = jax.export.deserialize(pathlib.Path({str(file)!r}).read_bytes())\n"
        "print(program.in_tree)"
    )
    read = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    assert read.stdout == f"{program.in_tree}\n"
