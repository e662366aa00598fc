"""What the parts of Tiger exchange between devices: scalars, and sums of rows."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType

import optaxtricks as ot
from tests.problems import assert_same, values

from .test_lazy_rows_sharded import PLACEMENTS, placed, sizes

PARTS = {
    "scale_by_tiger": (ot.scale_by_tiger(), 1),
    "shrink_nonfinite": (ot.shrink_nonfinite(optax.sgd(0.5)), 1),
    "param_rms": (ot.scale_by_param_rms(), 1),
    "param_rms by row": (ot.scale_by_param_rms(rows=".*"), 32),
}


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axes", PLACEMENTS.values(), ids=PLACEMENTS)
@pytest.mark.parametrize(("tx", "most"), PARTS.values(), ids=PARTS)
def test_parts_exchange_no_more_than_they_say(tx, most, axes, kind):
    table, grad = values((32, 8), jnp.float32, 1), values((32, 8), jnp.float32, 2)
    want = jax.jit(tx.update)(grad, tx.init(table), table)
    there = placed(table, kind, axes)
    arguments = placed(grad, kind, axes), tx.init(there), there
    compiled = jax.jit(tx.update).lower(*arguments).compile()
    assert_same(compiled(*arguments), want, ulps=4)
    found = sizes(compiled.as_text())
    assert max(found, default=0) <= most
    assert found or (most > 1 and axes[1] is None)
