"""Masks inside jax.shard_map, where a leaf is a block: its own mask fits it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optaxtricks
from tests.problems import assert_same, values

ot: Any = optaxtricks
INNER = optax.sgd(0.5, momentum=0.5)
MASK = np.asarray(values((32, 8), jnp.float32, 4) > 0)
GRADS = values((32, 8), jnp.float32, 1)
FACTORIES: dict[str, Any] = {
    "keep_entries": ot.keep_entries,
    "child_tuning_d": lambda mask: ot.child_tuning_d(INNER, mask),
    "compact_entries": lambda mask: ot.compact_entries(INNER, mask),
}


def mesh(kind: AxisType) -> Any:
    return jax.make_mesh((4,), ("x",), devices=jax.devices()[:4], axis_types=(kind,))


def both(tx: Any, grads: Any) -> Any:
    """The second update, of a momentum too."""
    _, state = tx.update(grads, tx.init(grads), grads)
    return tx.update(grads, state, grads)[0]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_a_mask_of_whole_leaves_is_refused_with_the_cure(make: Any, kind: Any) -> None:
    message = (
        r"mask at '': expected shape \(8, 8\), got \(32, 8\); inside jax.shard_map a "
        "leaf is a block: act outside of it, on whole arrays under jax.jit, or build "
    )
    there = mesh(kind)
    for run in (both, lambda tx, grads: tx.update(grads, tx.init(GRADS), grads)[0]):
        step = lambda grads, run=run: run(make(MASK), grads)
        mapped: Any = jax.shard_map(step, mesh=there, in_specs=P("x"), out_specs=P("x"))
        with jax.set_mesh(there), pytest.raises(ValueError, match=message):
            mapped(jax.device_put(GRADS, jax.NamedSharding(there, P("x"))))
    # Outside the remedy is another one.
    with pytest.raises(ValueError, match=r"got \(32, 8\); only axes of size 1 broadc"):
        make(MASK).init(GRADS[:8])


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)
def test_outside_it_acts_on_whole_arrays(make: Any) -> None:
    put = jax.device_put(GRADS, jax.NamedSharding(mesh(AxisType.Auto), P("x")))
    assert_same(jax.jit(lambda g: both(make(MASK), g))(put), both(make(MASK), GRADS))


@pytest.mark.parametrize("name", ["keep_entries", "child_tuning_d"])
def test_a_block_of_the_mask_serves_a_block(name: str) -> None:
    make = FACTORIES[name]
    step = lambda grads, mask: both(make(mask), grads)
    mapped: Any = jax.shard_map(
        step, mesh=mesh(AxisType.Auto), in_specs=P("x"), out_specs=P("x")
    )
    assert_same(jax.jit(mapped)(GRADS, MASK), both(make(MASK), GRADS))


def test_a_mask_of_a_block_serves_every_shard() -> None:
    tx = ot.compact_entries(INNER, MASK[:8])
    mapped: Any = jax.shard_map(
        lambda grads: both(tx, grads),
        mesh=mesh(AxisType.Auto),
        in_specs=P("x"),
        out_specs=P("x"),
    )
    want = [both(tx, GRADS[i : i + 8]) for i in range(0, 32, 8)]
    assert_same(mapped(GRADS), jnp.concatenate(want))
