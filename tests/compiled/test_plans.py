"""Whole steps of decoders, as the compiler of a TPU makes them."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks.pod.__main__ import main
from benchmarks.pod.cli import parse
from benchmarks.pod.parts import REMATS, SIZES, DecoderConfig
from benchmarks.pod.plan import Plan, plan, plan_mesh
from benchmarks.pod.program import Program
from benchmarks.pod.search import search
from benchmarks.pod.work import open_work

FOLDER = Path(__file__).parents[2] / "build" / "compiled"
MESHES = {"tiny": "data=2,model=2", "1b": "data=4"}
CHIPS, BFLOAT16 = 4, 2
STEPS = [
    *[("tiny", recipe) for recipe in ("adamw", "tiger", "lora", "ladder", "cached")],
    *[("1b", recipe) for recipe in ("adamw", "lora", "ladder")],
]
each_step = pytest.mark.parametrize(("model", "recipe"), STEPS)
pytestmark = [
    pytest.mark.compiled,
    pytest.mark.usefixtures("standard_promotion"),  # of Optax's schedules
]


def _options(model: str, recipe: str, **changes: Any) -> Any:
    flags = {"plan": "v5e:2x2", "mesh": MESHES.get(model), "plan-cache": FOLDER}
    flags |= {"model": model, "recipe": recipe, **changes}
    pairs = [(f"--{name}", value) for name, value in flags.items() if value is not None]
    return parse([str(part) for pair in pairs for part in pair])


def _program(model: str, recipe: str) -> Program:
    options = _options(model, recipe)
    mesh = plan_mesh(options)
    options.batch_size = mesh.shape["data"]
    return Program(open_work(options, mesh), options, mesh)


@functools.cache
def _plan(model: str, recipe: str) -> Plan:
    return plan(_options(model, recipe))


def _entries(config: DecoderConfig) -> tuple[int, int]:
    """Of all kernels of the layers, and of the head."""
    inner = config.kv_heads * config.head_width
    layer = 2 * config.width * (config.width + inner) + 3 * config.width * config.hidden
    return config.layers * layer, config.width * config.vocabulary


@each_step
def test_it_fits(model: str, recipe: str) -> None:
    found = _plan(model, recipe)
    assert found.fits and found.refusal is None
    assert found.total is not None and found.arguments is not None
    given = sum(found.held[name] for name in ("parameters", "state", "batch"))
    # A TPU pads small arrays to whole tiles.
    slack = 1.01 * given if model == "1b" else 4 * given
    assert given <= found.arguments <= slack
    assert found.total < found.chip.memory


@pytest.mark.parametrize("recipe", ["adamw", "ladder"])
def test_only_weights_are_gathered_and_only_gradients_scattered(recipe: str) -> None:
    """Kernels are gathered forward and backward, and their gradients scattered once.

    What else travels are states of texts. A frozen backbone is gathered forward alone.
    """
    found = _plan("1b", recipe)
    layers, head = _entries(SIZES["1b"])
    trained = recipe == "adamw"
    share = BFLOAT16 * (CHIPS - 1) / CHIPS
    limits = {
        "all-gather": share * (layers * (2 if trained else 1) + head),
        "reduce-scatter": share * (layers + head) if trained else 0,
    }
    sent = dict.fromkeys((*limits, "rest"), 0.0)
    for one in found.exchanges:
        assert one.axes == "data" or one.kind == "collective-permute"
        sent[one.kind if one.kind in limits else "rest"] += one.times * one.sent
    side = share * sum(
        leaf.size for leaf in jax.tree.leaves(_program("1b", recipe).trained)
    )
    for kind, limit in limits.items():
        more = 0 if trained else 4 * side
        assert sent[kind] <= 1.06 * limit + more, (kind, sent[kind], limit)
    assert sent["all-gather"] >= 0.99 * limits["all-gather"]
    states = BFLOAT16 * 2048 * SIZES["1b"].width
    largest = max(one.size for one in found.exchanges if one.kind not in limits)
    assert largest <= 2 * CHIPS * states
    assert sent["rest"] <= 16 * states + 4 * side * (not trained)


@pytest.mark.parametrize("recipe", ["adamw", "ladder", "lora"])
def test_what_is_frozen_has_no_backward_pass(recipe: str) -> None:
    """Products forward, once more for the backward pass, and two for each gradient.

    Of a frozen kernel there is no second product, and below a ladder no pass at all.
    """
    config, length = SIZES["1b"], 2048
    layers, head = (2 * length * entries for entries in _entries(config))
    scores = 4 * length * length * config.width * config.layers
    side = sum(leaf.size for leaf in jax.tree.leaves(_program("1b", recipe).trained))
    passes = {
        "adamw": 4 * layers + 5 * scores + 4 * head,
        "lora": 3 * layers + 5 * scores + 3 * head + 8 * length * side,
        "ladder": layers + scores + 3 * head + 8 * length * side,
    }
    found = _plan("1b", recipe).flops
    assert 0.9 * passes[recipe] <= found <= 1.02 * passes[recipe]


@pytest.mark.parametrize("recipe", ["adamw", "tiger", "ladder"])
def test_state_lies_as_its_parameters_do(recipe: str) -> None:
    program = _program("1b", recipe)
    places: dict[tuple[int, ...], set[Any]] = {}
    for leaf in jax.tree.leaves(program.shapes["params"]):
        places.setdefault(leaf.shape, set()).add(leaf.sharding)
    for leaf in jax.tree.leaves(program.shapes["state"]):
        if leaf.ndim > 1:
            assert leaf.sharding in places[leaf.shape]
            assert not leaf.sharding.is_fully_replicated or leaf.size < 1e6


def test_a_refusal_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--plan", "v5e:2x2", "--model", "8b", "--recipe", "adamw"]
    assert main([*flags, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["fits"] and found["total"] is None
    assert "Ran out of memory on HBM" in found["refusal"]
    # Parameters and two moments in float32, over four chips.
    assert found["parameters"] + found["state"] > 24e9 > found["memory"]
    assert all("kernel" in path or "emb" in path for path in found["largest"])
    assert main(flags) == 1
    said = capsys.readouterr().out
    assert "does not fit" in said and "refused: RESOURCE_EXHAUSTED" in said


def test_a_search_ends_at_what_does_not_fit() -> None:
    gigabytes = {1: 1.0, 16: 8.5, 32: 16.6}

    def planned(options: Any) -> Plan:
        examples = options.batch_size // options.microbatches // CHIPS
        one = _plan("tiny", "adamw")
        settings = one.settings | {"remat": options.remat, "examples": examples}
        sizes = {"arguments": int(0.5e9), "temporaries": int(1e9 * gigabytes[examples])}
        return dataclasses.replace(one, settings=settings, **sizes)

    seen = list(search(_options("tiny", "adamw", mesh="data=4"), planned))
    for remat in REMATS:
        tried = [p for p in seen if p.settings["remat"] == remat]
        # The first leaves room for 16 times as much.
        assert [p.settings["examples"] for p in tried] == 2 * [1, 16, 32]
        assert [p.fits for p in tried] == 2 * [True, True, False]
