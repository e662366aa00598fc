"""The decoder against its equations, and against itself in other forms."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.pod import attention
from benchmarks.pod.decoder import Decoder, LadderDecoder, Top
from benchmarks.pod.language import Model
from benchmarks.pod.layout import Layout
from benchmarks.pod.mesh import make_mesh
from benchmarks.pod.parts import REMATS, SIZES, Build
from benchmarks.pod.program import accumulated

CONFIG = SIZES["tiny"]
TIED = dataclasses.replace(CONFIG, tied=True)
LENGTH = 12
# Matrices are multiplied in bfloat16.
ROUNDING = 3e-2


def _build(**options: Any) -> Build:
    return Build(layout=options.pop("layout", Layout(None)), **options)


@functools.cache
def _decoder(kind: type[Top] = Decoder, config: Any = CONFIG, **options: Any) -> Any:
    return kind(config, _build(**options), rngs=nnx.Rngs(params=jax.random.key(0)))


def _tokens(count: int = 2, length: int = LENGTH) -> np.ndarray:
    return np.random.default_rng(0).integers(0, CONFIG.vocabulary, (count, length))


def _arrays(model: Any) -> Any:
    read = lambda x: np.asarray(x, np.float64)
    return jax.tree.map(read, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def _rms(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale


def _softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def _turned(x: np.ndarray) -> np.ndarray:
    """Each pair of features as a complex number, turned by its angle."""
    length, half = x.shape[0], x.shape[-1] // 2
    rates = CONFIG.theta ** (-np.arange(half) / half)
    turn = np.exp(1j * np.arange(length)[:, None] * rates)[:, None]
    pairs = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def _layer(x: np.ndarray, part: Any) -> np.ndarray:
    """One layer on the states (length, width) of one text."""
    heads, shared = CONFIG.heads, CONFIG.heads // CONFIG.kv_heads
    kernel = lambda name: part["attention"][name]["kernel"]
    inside = _rms(x, part["attention_norm"]["scale"])
    split = lambda name: (inside @ kernel(name)).reshape(
        len(x), -1, x.shape[1] // heads
    )
    query, key, value = _turned(split("query")), _turned(split("key")), split("value")
    mixed = np.empty_like(query)
    for head in range(heads):
        scores = query[:, head] @ key[:, head // shared].T / np.sqrt(query.shape[-1])
        scores[np.triu_indices(len(x), 1)] = -np.inf
        mixed[:, head] = _softmax(scores) @ value[:, head // shared]
    x = x + mixed.reshape(x.shape) @ kernel("output")
    inside, weights = _rms(x, part["norm"]["scale"]), part["feed_forward"]
    gate, up = inside @ weights["gate"]["kernel"], inside @ weights["up"]["kernel"]
    return x + (gate / (1 + np.exp(-gate)) * up) @ weights["down"]["kernel"]


def _reference(params: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits of one text."""
    x = params["word"]["embedding"][tokens]
    for number in range(CONFIG.layers):
        x = _layer(x, jax.tree.map(lambda stack, n=number: stack[n], params["layers"]))
    x = _rms(x, params["norm"]["scale"])
    head = (
        params["head"]["kernel"] if "head" in params else params["word"]["embedding"].T
    )
    return x @ head


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=("untied", "tied"))
def test_the_loss_is_that_of_the_equations(config: Any) -> None:
    model, tokens = _decoder(config=config), _tokens()
    loss = model.loss(model(tokens[:, :-1]), jnp.asarray(tokens[:, 1:]))
    params, losses = _arrays(model), []
    for text in tokens:
        chosen = _softmax(_reference(params, text[:-1]))
        losses.append(-np.log(chosen[np.arange(LENGTH - 1), text[1:]]))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=5e-3)


def test_no_state_depends_on_a_later_token() -> None:
    model, tokens = _decoder(), _tokens(1)
    changed = tokens.copy()
    changed[:, 7] += 1
    before, after = (np.asarray(model(x), np.float32)[0] for x in (tokens, changed))
    np.testing.assert_array_equal(before[:7], after[:7])
    assert (before[7:] != after[7:]).any(axis=-1).all()


def test_scores_depend_on_the_distance_alone() -> None:
    angles = attention.rotary_angles(9, CONFIG)
    x = jax.random.normal(jax.random.key(1), (2, 1, 1, 1, CONFIG.head_width))
    query, key = (jnp.broadcast_to(v, (1, 9, 1, CONFIG.head_width)) for v in x)
    turned = [attention.rotated(v, angles)[0, :, 0] for v in (query, key)]
    scores = np.asarray(turned[0] @ turned[1].T)
    for distance in range(-8, 9):
        line = np.diagonal(scores, distance)
        np.testing.assert_allclose(line, line[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("most", [1, 4, 5])
def test_chunks_of_queries_change_nothing(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    parts = [jax.random.normal(key, (2, LENGTH, 4, 8)) for key in keys]
    whole = attention.causal_attention(*parts)
    monkeypatch.setattr(attention, "QUERIES", most)
    found = attention.causal_attention(*parts)
    np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-6)


def _gradient(kind: str = "full", **options: Any) -> Callable[..., Any]:
    model = Model(CONFIG, kind, _build(**options), LENGTH)
    return jax.jit(jax.value_and_grad(model.loss))


@pytest.fixture(scope="module")
def batch() -> Any:
    return {"tokens": jnp.asarray(_tokens(4, LENGTH + 1))}


@pytest.fixture(scope="module")
def params() -> Any:
    return Model(CONFIG, "full", _build(), LENGTH).fresh(jax.random.key(0))


def test_remat_changes_no_gradient(params: Any, batch: Any) -> None:
    key = jax.random.key(0)
    want = _gradient(remat="none")(params, batch, key)
    for remat in REMATS:
        found = _gradient(remat=remat)(params, batch, key)
        for ours, theirs in zip(*map(jax.tree.leaves, (found, want)), strict=True):
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 * scale)


def test_microbatches_give_the_gradient_of_the_whole(params: Any, batch: Any) -> None:
    one, key = _gradient(), jax.random.key(0)
    want = one(params, batch, key)
    loss, grads = jax.jit(accumulated(one, 4))(params, batch, key)
    np.testing.assert_allclose(loss, want[0], rtol=1e-4)
    for ours, theirs in zip(*map(jax.tree.leaves, (grads, want[1])), strict=True):
        assert ours.dtype == theirs.dtype
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 * scale)


def test_microbatches_keep_examples_where_they_are() -> None:
    mesh = make_mesh({"data": 8, "model": 1})
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    batch = jax.device_put(jnp.arange(32.0).reshape(16, 2), rows)
    gradient = lambda params, batch, key: ((batch @ params).sum(), params)
    step = jax.jit(accumulated(gradient, 2))
    text = step.lower(jnp.ones(2), batch, jax.random.key(0)).compile().as_text()
    assert text is not None
    assert "all-gather" not in text and "all-to-all" not in text
    assert "collective-permute" not in text


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=("untied", "tied"))
def test_adapters_start_at_the_model_that_they_adapt(config: Any) -> None:
    tokens = _tokens()
    for kind, options in ((Decoder, {"lora_rank": 4}), (LadderDecoder, {})):
        adapted = _decoder(kind, config, **options)
        params = nnx.to_pure_dict(nnx.state(adapted, nnx.Param))
        plain = _decoder(Decoder, config)
        graph, state = nnx.split(plain)
        known = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
        kept = {
            path: leaf
            for path, leaf in nnx.to_flat_state(nnx.State(params))
            if "/".join(map(str, path)) in known
        }
        bare = nnx.merge(graph, nnx.from_flat_state(kept))
        found, want = (np.asarray(m(tokens), np.float32) for m in (adapted, bare))
        np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("config", [CONFIG, TIED], ids=("untied", "tied"))
def test_a_ladder_on_cached_taps_is_the_ladder(config: Any) -> None:
    models = {
        kind: Model(config, kind, _build(param_dtype=jnp.bfloat16), LENGTH)
        for kind in ("ladder", "cached")
    }
    key, tokens = jax.random.key(3), jnp.asarray(_tokens(2, LENGTH + 1))
    whole, top = (models[kind].fresh(key) for kind in models)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (top, {name: whole[name] for name in top})), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    first, others = models["ladder"].make(key).taps(tokens[:, :-1])
    taps = jnp.concatenate([first[None], others]).swapaxes(0, 1)
    losses = [
        jax.value_and_grad(models[kind].loss)(params, batch, key)
        for kind, params, batch in (
            ("ladder", whole, {"tokens": tokens}),
            ("cached", top, {"tokens": tokens, "taps": taps}),
        )
    ]
    np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-5)
    sides = (jax.tree.leaves(grads["side"]) for _, grads in losses)
    for ours, theirs in zip(*sides, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-2 * scale)
