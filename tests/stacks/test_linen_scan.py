"""A Linen model with scanned layers trains as the one with a list of them."""

from pathlib import Path
from typing import Any

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks as ot
from tests.problems import assert_same, layout

from .linen import SCANNED, UNROLLED, error, trainer, unrolled
from .models import (
    HEAD_SIZE,
    HEADS,
    LAYER,
    LAYERS,
    REST,
    WIDTH,
    Form,
    LinenNet,
    batch,
    plain_params,
)
from .training import (
    assert_trains_as,
    drift,
    each_form_and_recipe,
    optimizer_for,
    paths,
)

SECOND = SCANNED["second"]
AUTO = (AxisType.Auto,) * 2
each_form = pytest.mark.parametrize("form", SCANNED.values(), ids=SCANNED)
brief = pytest.mark.parametrize(
    "recipe", ["tiger", pytest.param("everything", marks=pytest.mark.slow)]
)


def test_paths() -> None:
    """A stack is one node, named by hand or after the class that it scans over."""
    make = lambda **how: jax.eval_shape(
        LinenNet(**how).init, jax.random.key(0), batch(0)[0]
    )["params"]
    below = lambda name: [f"{name}/{path}" for path in LAYER]
    listed = [path for i in range(LAYERS) for path in below(f"layers_{i}")]
    assert paths(make()) == [*REST, *listed]
    assert paths(make(axis=0)) == [*REST, *below("layers")]
    unnamed = make(axis=1, stack=None)
    assert paths(unnamed) == [*below("ScanLinenLayer_0"), *REST]
    attention = unnamed["ScanLinenLayer_0"]["attention"]
    assert attention["query"]["kernel"].shape == (WIDTH, LAYERS, HEADS, HEAD_SIZE)
    assert attention["query"]["bias"].shape == (HEADS, LAYERS, HEAD_SIZE)
    zeros = optax.tree.zeros_like(unnamed)
    tx = ot.per_layer(ot.scale_by_lion(), {"^ScanLinenLayer_0/": 1})
    assert layout(optax.tree.get(tx.init(zeros), "mu")) == layout(zeros)


# All recipes train the stack by hand; what is compiled here takes a minute each.
@each_form_and_recipe(
    SCANNED, {"first": ["everything", "muon"], "second": ["everything"]}
)
def test_trains_as_its_unrolled_twin(form: Form, recipe: str) -> None:
    assert_trains_as(unrolled(recipe), trainer(form), recipe)


def _scores_and_mask(form: Form) -> Any:
    """Fisher scores, clipped by the tensor, and the best entries of each tensor."""
    likelihood = lambda params, text: -error(LinenNet(form.axis))(params, *text)
    scores = ot.fisher_information(
        likelihood,
        form.pack(plain_params()),
        [batch(0), batch(1)],
        per="batch",
        clip_norm=0.1,
        stacked=form.stacks,
    )
    mask = ot.top_fraction_mask(scores, 0.3, scope="leaf", stacked=form.stacks)
    return form.unpack(scores), form.unpack(mask)


@pytest.mark.slow
@each_form
def test_fisher_scores_and_masks_go_by_layers(form: Form) -> None:
    (scores, mask), (wanted, twin) = map(_scores_and_mask, (form, UNROLLED))
    assert_same(scores, wanted, ulps=16)
    assert_same(mask, twin)


def _held(train: Any) -> Any:
    """What a checkpoint holds."""
    return {"params": train.params, "opt_state": train.opt_state}


def _from_orbax(train: Any, path: Path) -> Any:
    """Saved and read back, every array to where it was."""
    where = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "held", _held(train))
        checkpointer.wait_until_finished()
        held = checkpointer.restore(path / "held", jax.tree.map(where, _held(train)))
    return train.replace(**held)


def _from_msgpack(train: Any, path: Path) -> Any:
    del path
    data = flax.serialization.to_bytes(train)
    return flax.serialization.from_bytes(train, data)


@pytest.mark.parametrize("saved", [_from_orbax, _from_msgpack])
def test_stopped_it_goes_on_to_the_same_bits(saved: Any, tmp_path: Path) -> None:
    scanned = trainer(SECOND)
    scanned.start(optimizer_for(scanned, "everything"))
    *earlier, last = unrolled("everything")
    for step in earlier:
        scanned.apply(step.grads)
    stopped = scanned.train
    scanned.apply(last.grads)
    want, restored = scanned.train, saved(stopped, tmp_path)
    assert_same(restored, stopped)
    # Flax gives NumPy arrays, and Orbax arrays that are bound to their device.
    scanned.train = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), restored)
    scanned.apply(last.grads)
    assert_same(scanned.train, want)


@brief
def test_it_trains_in_bfloat16(recipe: str) -> None:
    scanned = trainer(SECOND)
    tx = optimizer_for(scanned, recipe)
    scanned.start(tx, jnp.bfloat16)
    before, first = layout(scanned.train), unrolled(recipe)[0]
    narrow = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)
    scanned.apply(narrow(first.grads))
    assert layout(scanned.train) == before
    assert_same(scanned.params(), narrow(first.params), ulps=2)


@brief
def test_with_layers_divided_over_eight_devices(recipe: str, tmp_path: Path) -> None:
    """One program, traced once, of which everything stays where it was."""
    mesh = jax.make_mesh((LAYERS, 8 // LAYERS), ("layers", "width"), AUTO)
    scanned = trainer(SECOND)
    tx = optimizer_for(scanned, recipe)
    scanned.start(tx)
    params = scanned.train.params
    spec = lambda stack: PartitionSpec("width", *["layers"] if stack else [])
    places = jax.tree.map(
        lambda stack: NamedSharding(mesh, spec(stack)), ot.select(params, "^layers/")
    )
    params = jax.device_put(params, places)
    init = jax.jit(tx.init, out_shardings=ot.state_shardings(tx, params))
    train: Any = TrainState(
        step=jax.device_put(0, NamedSharding(mesh, PartitionSpec())),
        apply_fn=scanned.net.apply,
        params=params,
        tx=tx,
        opt_state=init(params),
    )
    mu = optax.tree.get(train.opt_state, "mu")
    assert jax.tree.map(lambda leaf: leaf.sharding, mu) == places

    def step(train: TrainState, tokens: Any, wanted: Any) -> TrainState:
        grads = jax.grad(error(scanned.net))(train.params, tokens, wanted)
        return train.apply_gradients(grads=grads)

    chex.clear_trace_counter()
    compiled = jax.jit(
        chex.assert_max_traces(step, n=1),
        donate_argnums=0,
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, train),
    )
    for number, want in enumerate(unrolled(recipe)):
        train = compiled(train, *batch(number))
        ulps = drift(number, recipe)
        assert_same(SECOND.unpack(train.params), want.params, ulps=ulps)
    assert_same(_from_orbax(train, tmp_path), train)
