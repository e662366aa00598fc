"""Head, BitFit, LoRA and adapters: what trains, how much, and from where."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optaxtricks as ot
from benchmarks.finetune.adaptation import (
    ADAPTER_WIDTH,
    LORA_ALPHA,
    LORA_RANK,
    LoRALinear,
)
from benchmarks.finetune.recipes import RECIPES

from .training import SEED, count, moved, size, tiny_problem, train

pytestmark = [pytest.mark.usefixtures("training"), pytest.mark.slow]
LAYERS, WIDTH, INNER, CLASSES = 2, 24, 40, 2
HEAD = WIDTH * CLASSES + CLASSES


@pytest.fixture
def problem():
    return tiny_problem()


def check(problem, name, pattern, trained):
    """Trains, and checks which leaves moved and that nothing else was paid for."""
    before, after, _, record = train(problem, name)
    chosen = ot.select(before, lambda path, leaf: bool(re.search(pattern, path)))
    changed = moved(before, after)
    stray = [c.any() for c, t in _pairs(changed, chosen) if not t]
    assert not any(stray)
    # A bias of keys adds the same to all scores of a query, which softmax takes away:
    # its gradient is nothing but rounding.
    keys = ot.select(before, r"key/bias$")
    due = jax.tree.map(lambda t, key: t and not key, chosen, keys)
    assert all(c.any() for c, t in _pairs(changed, due) if t)
    assert size([leaf for leaf, t in _pairs(before, chosen) if t]) == trained
    assert record["trained_parameters"] == trained
    # Adam's two moments and a few counters.
    assert record["optimizer_state_bytes"] <= 8 * trained + 32
    return before, after


def _pairs(tree, chosen):
    return zip(jax.tree.leaves(tree), jax.tree.leaves(chosen), strict=True)


def same_start(problem, name, tolerance):
    """Class scores of the recipe's fresh model beside the plain classifier's."""
    batch = problem.train[:8]
    own = dataclasses.replace(problem, make=RECIPES[name].model)
    plain, found = (p.logits(p.initial(SEED), batch) for p in (problem, own))
    np.testing.assert_allclose(found, plain, rtol=0, atol=tolerance)


def test_head_leaves_the_encoder_bit_identical(problem):
    before, after = check(problem, "head", "^head/", HEAD)
    assert count(moved(before, after)["head"]) == size(before["head"])


def test_bitfit_moves_biases_and_the_head_alone(problem):
    # Of a layer: four projections, two halves of the feed-forward part, two norms.
    biases = WIDTH + LAYERS * (4 * WIDTH + INNER + WIDTH + 2 * WIDTH)
    check(problem, "bitfit", "bias$|^head/", biases + HEAD)


def test_lora_moves_its_thin_matrices_and_the_head_alone(problem):
    lora = LAYERS * 2 * (2 * LORA_RANK * WIDTH)
    before, _ = check(problem, "lora", "lora_[ab]/kernel$|^head/", lora + HEAD)
    attention = before["encoder"]["layers"][0]["attention"]
    thin = {k for k, module in attention.items() if "lora_a" in module}
    assert thin == {"query", "value"}


def test_lora_starts_at_the_pretrained_model(problem):
    same_start(problem, "lora", 0.0)


def test_lora_adds_a_scaled_product():
    layer = LoRALinear(6, 5, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, a, b = (
        rng.normal(size=s).astype(np.float32)
        for s in ((3, 6), (6, LORA_RANK), (LORA_RANK, 5))
    )
    layer.lora_a.kernel[...] = jnp.asarray(a)
    layer.lora_b.kernel[...] = jnp.asarray(b)
    kernel = np.asarray(layer.kernel[...]) + LORA_ALPHA / LORA_RANK * (a @ b)
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ kernel, rtol=0, atol=1e-4)


def test_adapters_move_bottlenecks_norms_and_the_head_alone(problem):
    bottleneck = 2 * WIDTH * ADAPTER_WIDTH + WIDTH + ADAPTER_WIDTH
    norms = (2 * LAYERS + 1) * 2 * WIDTH
    pattern = "_adapter/(down|up)/|norm/(scale|bias)$|^head/"
    check(problem, "adapters", pattern, LAYERS * 2 * bottleneck + norms + HEAD)


def test_adapters_start_near_the_pretrained_model(problem):
    same_start(problem, "adapters", 1e-5)


def test_adapters_stand_at_the_end_of_each_half(problem):
    own = dataclasses.replace(problem, make=RECIPES["adapters"].model)
    batch, params = problem.train[:8], own.initial(SEED)
    for half in ("attention_adapter", "output_adapter"):
        layer = params["encoder"]["layers"][0][half]
        assert layer["down"]["kernel"].shape == (WIDTH, ADAPTER_WIDTH)
        # Doubles what passes: the up-projection inverts a fixed linear part.
        shifted = jax.tree.map(lambda x: x, params)
        shifted["encoder"]["layers"][0][half]["up"]["bias"] = jnp.full(WIDTH, 0.5)
        # A constant shift is what the LayerNorm behind the adapter takes away.
        found = own.logits(shifted, batch)
        np.testing.assert_allclose(found, own.logits(params, batch), atol=1e-5)
        step = jnp.arange(WIDTH, dtype=jnp.float32)
        shifted["encoder"]["layers"][0][half]["up"]["bias"] = step
        assert np.abs(own.logits(shifted, batch) - found).max() > 1e-4


def test_a_seed_gives_one_head_and_one_start(problem):
    plain = problem.initial(SEED)
    for name in ("lora", "adapters", "ladder"):
        own = dataclasses.replace(problem, make=RECIPES[name].model)
        first, second = own.initial(SEED), own.initial(SEED)
        assert count(moved(first, second)) == 0
        assert count(moved(first["head"], plain["head"])) == 0
        assert count(moved(first, own.initial(SEED + 1))) > size(plain["head"]) // 2
