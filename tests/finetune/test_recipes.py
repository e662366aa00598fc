"""Every recipe trains what it claims to train, and nothing else."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from benchmarks.finetune.recipes import FISH_FRACTION, KEEP_FRACTION, RECIPES
from benchmarks.finetune.train import warm_up_then_decay

from . import test_ladder_recipes, test_parameter_efficient
from .training import SEED, count, moved, size, tiny_problem, train

pytestmark = [pytest.mark.usefixtures("training"), pytest.mark.slow]


@pytest.fixture
def problem():
    return tiny_problem()


def kernels(tree):
    """The kernels of the layers: leaves with a gradient at every entry."""
    flat = jax.tree.leaves_with_path(tree["encoder"]["layers"])
    return [leaf for path, leaf in flat if "kernel" in str(path[-1])]


def test_full_trains_every_leaf(problem):
    before, after, _, record = train(problem, "full")
    changed = moved(before, after)
    assert all(leaf.any() for leaf in jax.tree.leaves(changed))
    assert record["trained_parameters"] == size(before)
    assert record["optimizer_state_bytes"] >= 8 * size(before)


def test_child_tuning_d_moves_kept_layer_entries_only(problem):
    before, after, mask, record = train(problem, "child_tuning_d")
    layers, changed = before["encoder"]["layers"], moved(before, after)
    kept = mask["encoder"]["layers"]
    assert count(kept) == math.floor(KEEP_FRACTION * size(layers) + 1e-6)
    stray = jax.tree.map(
        lambda c, k: c & ~np.asarray(k), changed["encoder"]["layers"], kept
    )
    assert count(stray) == 0
    assert count(changed["encoder"]["layers"]) > 0.99 * count(kept)
    assert changed["encoder"]["embeddings"]["word"]["embedding"].any()
    assert changed["head"]["kernel"].all()
    dense = size(before) - size(layers)
    assert record["trained_parameters"] == dense + count(kept)


def test_child_tuning_f_reaches_every_leaf(problem):
    before, after, _, record = train(problem, "child_tuning_f")
    assert all(leaf.any() for leaf in jax.tree.leaves(moved(before, after)))
    assert record["trained_parameters"] == size(before)


def test_child_tuning_f_passes_the_kept_share_of_the_first_gradient(problem):
    once = dataclasses.replace(problem, steps=1)
    # Decay moves dropped entries too, but by far less than Adam's first step, which
    # moves each kept one by the rate.
    before, after, _, _ = train(once, "child_tuning_f", learning_rate=1e-2)
    steps = jax.tree.map(lambda x, y: np.abs(np.asarray(x - y)), before, after)
    large = [step > 5e-3 for step in kernels(steps)]
    share = count(large) / size(large)
    error = math.sqrt(KEEP_FRACTION * (1 - KEEP_FRACTION) / size(large))
    assert abs(share - KEEP_FRACTION) < 5 * error


def test_update_dropout_moves_the_kept_share_in_one_step(problem):
    once = dataclasses.replace(problem, steps=1)
    before, after, _, record = train(once, "update_dropout")
    changed = kernels(moved(before, after))
    share = count(changed) / size(changed)
    error = math.sqrt(KEEP_FRACTION * (1 - KEEP_FRACTION) / size(changed))
    assert abs(share - KEEP_FRACTION) < 5 * error
    assert record["trained_parameters"] == size(before)


def test_fish_moves_exactly_its_mask_and_the_head(problem):
    before, after, mask, record = train(problem, "fish")
    changed = moved(before, after)
    kept = jax.tree.map(np.asarray, mask["encoder"])
    jax.tree.map(np.testing.assert_array_equal, changed["encoder"], kept)
    assert count(kept) == math.floor(FISH_FRACTION * size(before["encoder"]) + 1e-6)
    assert count(changed["head"]) == size(before["head"])
    assert record["trained_parameters"] == count(kept) + size(before["head"])
    assert record["optimizer_state_bytes"] < 0.2 * size(before) * 4


def word_rows(tree):
    """Which words' rows changed."""
    return np.asarray(tree["encoder"]["embeddings"]["word"]["embedding"]).any(axis=1)


def test_lion_takes_steps_of_one_size(problem):
    once = dataclasses.replace(problem, steps=1)
    before, after, _, record = train(once, "lion", learning_rate=1e-2)
    steps = jax.tree.map(lambda x, y: np.abs(np.asarray(x - y)), before, after)
    # All but the decay of a tenth, and entries without a gradient.
    for step in kernels(steps):
        assert (step[step > 5e-3] < 1.5e-2).all() and (step > 5e-3).mean() > 0.9
    assert record["optimizer_state_bytes"] < 4.1 * size(before)
    assert record["trained_parameters"] == size(before)


def test_tiger_takes_steps_relative_to_the_leaf(problem):
    once = dataclasses.replace(problem, steps=1)
    before, after, _, record = train(once, "tiger", learning_rate=1e-2)
    steps = jax.tree.map(lambda x, y: np.abs(np.asarray(x - y)), before, after)
    for kernel, step in zip(kernels(before), kernels(steps), strict=True):
        rms = float(np.sqrt(np.mean(np.square(kernel))))
        assert np.median(step) == pytest.approx(1e-2 * rms, rel=1e-2)
    assert record["optimizer_state_bytes"] < 4.1 * size(before)


def test_lazy_tiger_moves_words_of_the_batch_only(problem):
    once = dataclasses.replace(problem, steps=1)
    before, after, _, _ = train(once, "lazy_tiger")
    (batch,) = once.batches(SEED)
    seen = np.zeros_like(word_rows(before), bool)
    seen[batch["ids"][np.asarray(batch["mask"])]] = True
    assert not (word_rows(moved(before, after)) & ~seen).any()
    eager = word_rows(moved(*train(once, "tiger")[:2]))
    assert (eager & ~seen).any()


def test_mixed_sign_lets_adam_have_the_words(problem):
    once = dataclasses.replace(problem, steps=1)
    before, after, _, record = train(once, "mixed_sign", learning_rate=1e-3)
    steps = jax.tree.map(lambda x, y: np.abs(np.asarray(x - y)), before, after)
    words = steps["encoder"]["embeddings"]["word"]["embedding"]
    assert np.median(words[words > 0]) == pytest.approx(5e-3, rel=1e-2)
    assert np.median(kernels(steps)[0]) == pytest.approx(1e-3, rel=0.1)
    assert record["optimizer_state_bytes"] > 4 * (size(before) + words.size)


def test_every_recipe_is_tested():
    tests = [*globals(), *vars(test_ladder_recipes), *vars(test_parameter_efficient)]
    tested = {name for name in RECIPES if any(f"test_{name}_" in t for t in tests)}
    assert tested == set(RECIPES)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 200])
def test_the_schedule_peaks_once_and_is_never_zero(steps):
    schedule = warm_up_then_decay(2.0, steps)
    rates = [np.asarray(schedule(step)).item() for step in range(steps)]
    assert max(rates) == pytest.approx(2.0)
    assert np.argmax(rates) == max(1, round(steps / 10)) - 1
    assert min(rates) > 0
