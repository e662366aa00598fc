"""Ladder side-tuning: what trains, from where, and with cached hidden states."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.finetune.encoder import Attention, attention_bias
from benchmarks.finetune.recipes import RECIPES
from benchmarks.finetune.side_network import (
    REDUCTION,
    SideAttention,
    pruned_side,
    side_config,
)
from benchmarks.finetune.train import Program

from .test_parameter_efficient import (
    CLASSES,
    HEAD,
    INNER,
    LAYERS,
    WIDTH,
    check,
    same_start,
)
from .training import SEED, count, fisher, moved, size, tiny_problem, train

pytestmark = [pytest.mark.usefixtures("training"), pytest.mark.slow]
SIDE = r"^(side|head)/"


@pytest.fixture
def problem():
    return tiny_problem()


def trained_parameters():
    """Down-projections, narrow layers, gates, and the way up."""
    d, f = WIDTH // REDUCTION, INNER // REDUCTION
    downs = (LAYERS + 1) * (WIDTH * d + d)
    layer = 4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
    return downs + LAYERS * layer + LAYERS + (d * WIDTH + WIDTH) + 1 + HEAD


@pytest.mark.parametrize("name", ["ladder", "ladder_pruned", "ladder_cached"])
def test_ladders_move_the_side_network_and_the_head_alone(problem, name):
    check(problem, name, SIDE, trained_parameters())


def test_ladder_starts_at_the_pretrained_model(problem):
    same_start(problem, "ladder", 0.0)


def test_ladder_gives_the_encoder_no_gradient(problem):
    own = dataclasses.replace(problem, make=RECIPES["ladder"].model)
    batch, key = problem.train[:8], jax.random.key(0)
    gradient = jax.jit(jax.grad(own.loss))(own.initial(SEED), batch, key)
    assert count(jax.tree.map(lambda g: np.asarray(g) != 0, gradient["encoder"])) == 0
    assert np.asarray(gradient["side"]["top_gate"]) != 0


def test_side_attention_is_attention(problem):
    config = side_config(problem.config)
    structure, params = nnx.split(Attention(config, rngs=nnx.Rngs(0)))
    other, _ = nnx.split(SideAttention(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6, config.hidden_size)).astype(np.float32)
    mask = jnp.arange(6)[None] < jnp.array([[6], [3], [1], [5]])
    bias = attention_bias(mask, jnp.dtype("float32"))
    total = lambda graph: lambda p, x: (nnx.merge(graph, p)(x, bias) ** 2).sum()
    expected, found = (
        jax.jit(jax.value_and_grad(total(graph), (0, 1)))(params, x)
        for graph in (structure, other)
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, expected)


def test_ladder_cached_makes_the_same_updates(problem):
    before, live, _, record = train(problem, "ladder")
    _, cached, _, timed = train(problem, "ladder_cached")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        live,
        cached,
    )
    assert count(moved(before, cached)["side"]) > 0.5 * size(before["side"])
    assert record["caching_seconds"] is None and timed["caching_seconds"] > 0
    assert timed["epoch_seconds"] == pytest.approx(timed["step_ms"] * 1e-3 * 24 / 8)


def test_ladder_cached_reads_the_encoders_own_hidden_states(problem):
    program = Program(problem, RECIPES["ladder_cached"])
    own, rows = program.problem, np.array([5, 0, 23])
    taps = own.train[rows]["taps"]
    assert len(taps) == LAYERS + 1
    mask = np.asarray(problem.train.mask[rows])
    params = own.initial(SEED)
    live = own.logits(params, problem.train[rows])
    np.testing.assert_allclose(own.logits(params, own.train[rows]), live, atol=1e-5)
    assert taps[-1].shape == (*mask.shape, WIDTH) and live.shape == (3, CLASSES)


def test_ladder_pruned_starts_with_channels_of_the_encoder(problem):
    before, _, _, _ = train(problem, "ladder_pruned")
    streams, layers = [], problem.encoder["layers"]
    for number, layer in layers.items():
        block = before["side"][f"block_{number}"]
        # The entries of a bias show which channels of the stream were kept.
        kept = np.asarray(block["down"]["bias"])
        places = np.flatnonzero(np.isin(layer["down"]["bias"], kept))
        np.testing.assert_array_equal(layer["down"]["bias"][places], kept)
        streams.append(places)
        for name in ("query", "key", "value"):
            whole = layer["attention"][name]["kernel"][places]
            part = np.asarray(block["attention"][name]["kernel"])
            # One channel of each of the three heads, in their order.
            columns = [_column(whole, column) for column in part.T]
            assert [column // (WIDTH // 3) for column in columns] == [0, 1, 2]
    assert streams[0].size == WIDTH // REDUCTION
    np.testing.assert_array_equal(*streams)


def _column(matrix, column):
    (place,) = np.flatnonzero((matrix == column[:, None]).all(axis=0))
    return int(place)


def test_ladder_pruned_keeps_the_channels_of_highest_information(problem):
    # All information on three channels of the stream, and one of each layer's heads.
    chosen = np.array([2, 7, 20])
    like = jax.tree.map(np.zeros_like, problem.encoder)
    for layer in like["layers"].values():
        layer["norm"]["scale"][chosen] = 1.0
        layer["up"]["bias"][[0, 1, 5, 8, 39]] = 1.0
    side = pruned_side(problem.config, problem.encoder, {"encoder": like})["side"]
    assert set(side) == {f"block_{n}" for n in range(LAYERS)}
    for number, layer in problem.encoder["layers"].items():
        found = side[f"block_{number}"]
        kept = layer["up"]["kernel"][np.ix_(chosen, [0, 1, 5, 8, 39])]
        np.testing.assert_array_equal(found["up"]["kernel"], kept)
        np.testing.assert_array_equal(
            found["norm"]["bias"], layer["norm"]["bias"][chosen]
        )


def test_ladder_pruned_follows_the_seeds_head():
    starts = [fisher().get("ladder_pruned", seed).start for seed in (SEED, SEED)]
    assert count(moved(*starts)) == 0
    assert re.match("block_0", next(iter(starts[0]["side"])))
