"""The cost model's bytes are those of real states and compiled steps of 1e9 entries."""

from typing import Any

import jax
import numpy as np
import optax
import pytest

import optaxtricks as ot
from benchmarks import cost_model
from benchmarks.cost_model import COSTS, Cost
from tests.cases import CASES

each_cost = pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
# Counts, keys and readings are a few bytes a leaf.
SMALL = 1e-4


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@each_cost
def test_the_state_of_a_billion_parameters(cost: Cost) -> None:
    params = cost_model.abstract_params()
    count = sum(leaf.size for leaf in params.values())
    assert count > 1e9
    state = cost_model.abstract_state(cost, params)
    assert _bytes(state) / count == pytest.approx(cost.state, abs=SMALL)


@pytest.mark.parametrize(
    "name", ["optax.adamw", "gradient_dropout, adamw", "lion", "lion, ema_params"]
)
@pytest.mark.usefixtures("standard_promotion")
def test_a_compiled_step_reads_and_writes_what_the_model_says(name: str) -> None:
    cost, params = COSTS[name], cost_model.abstract_params()
    count = sum(leaf.size for leaf in params.values())
    state, tx = cost_model.abstract_state(cost, params), cost.make(None)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    memory: Any = lowered.compile().memory_analysis()
    assert memory.argument_size_in_bytes / count == pytest.approx(cost.reads, abs=SMALL)
    assert memory.output_size_in_bytes / count == pytest.approx(cost.writes, abs=SMALL)
    # All that is written lies where it was read: nothing of that size is allocated.
    assert memory.alias_size_in_bytes / count == pytest.approx(cost.writes, abs=SMALL)


@pytest.mark.parametrize("kept", [0.2, 0.005])
def test_compact_entries_holds_what_is_kept(kept: float) -> None:
    size = 100_000
    mask = np.zeros(size, bool)
    mask[: round(kept * size)] = True
    state = jax.eval_shape(
        ot.compact_entries(optax.adamw(1e-3), {"w": mask}).init,
        {"w": jax.ShapeDtypeStruct((size,), np.float32)},
    )
    assert _bytes(state) / size == pytest.approx(
        cost_model.compact_state(kept), rel=0.02
    )


def test_time_is_traffic_over_bandwidth() -> None:
    # 28 bytes a parameter of AdamW at 3.35 TB/s: 8.4 ps a parameter.
    got = cost_model.milliseconds(COSTS["optax.adamw"], chip="H100 SXM", params=1e9)
    assert got == pytest.approx(28 / 3.35)


# Names that are in the table as part of another.
PARTS = {
    "at_window_end": "tiger",
    "child_tuning_f": "gradient_dropout",
    "scale_by_depth": "scale_by_path",
    "scale_by_lion": "lion",
    "scale_by_param_rms": "tiger",
    "scale_by_tiger": "tiger",
    "two_timescale": "scale_by_path",
}


def test_every_transformation_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    cost_model.main(["--chip", "TPU v5p"])
    table = capsys.readouterr().out
    for name in {case.factory.__name__ for case in CASES.values()}:
        assert PARTS.get(name, name) in table, name
