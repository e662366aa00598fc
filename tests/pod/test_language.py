"""A tiny decoder learns text by every recipe, on one device as on eight."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.pod.__main__ import main
from benchmarks.pod.cli import parse
from benchmarks.pod.language import Texts
from benchmarks.pod.mesh import make_mesh
from benchmarks.pod.program import Program
from benchmarks.pod.recipes import RECIPES
from benchmarks.pod.work import open_work

from .runs import copy_until, finish, flags, losses, saved

STEPS, HALF = 30, 15
QUICK = ("adamw", "ladder")
# Rates at which so few steps show.
RATES = {
    "tiger": 2e-2,
    "lora": 1e-2,
    "ladder": 3e-2,
    "cached": 3e-2,
    "compact": 3e-2,
    "child_tuning_d": 1e-2,
}
# Of the others the encoder is trained by these.
ELSEWHERE = {"dropout_lion", "child_tuning_f", "everything"}
EVERY = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in RECIPES
    if name not in ELSEWHERE
]


def _flags(recipe: str, out: Path, cache: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "model": "tiny",
        "length": 32,
        "steps": STEPS,
        "batch_size": 16,
        "learning_rate": RATES.get(recipe, 3e-3),
        "checkpoint_every": HALF,
        "mesh": "data=4,model=2",
    }
    return flags(recipe, cache, out, **{**given, **changes})


@pytest.mark.parametrize("recipe", EVERY)
def test_a_tiny_decoder_learns_and_resumes(recipe: str, tmp_path: Path) -> None:
    eight, again, one = (tmp_path / name for name in ("eight", "again", "one"))
    cache = tmp_path / "cache"
    finish(_flags(recipe, eight, cache), devices=8, log=tmp_path / "log-8")
    fall = losses(eight)
    assert np.mean(fall[-5:]) < np.mean(fall[:3]) - 0.05, fall
    # From half of the way on, to the bit.
    copy_until(eight, HALF, again)
    said = finish(_flags(recipe, again, cache), devices=8, log=tmp_path / "log-again")
    assert f"going on after step {HALF} of {STEPS}." in said
    assert losses(again) == fall
    ours, theirs = saved(again, STEPS), saved(eight, STEPS)
    assert list(ours) == list(theirs)
    for path, leaf in theirs.items():
        assert leaf.tobytes() == ours[path].tobytes(), path
    # Products in bfloat16 are summed in another order.
    single = _flags(recipe, one, cache, mesh="data=1")
    finish(single, devices=1, log=tmp_path / "log-1")
    np.testing.assert_allclose(losses(one), fall, rtol=2e-2)


def _program(recipe: str, out: Path, **changes: Any) -> Program:
    given = _flags(recipe, out, out, **changes)
    options = parse([str(part) for pair in given.items() for part in pair])
    mesh = make_mesh(options.mesh)
    return Program(open_work(options, mesh), options, mesh)


@pytest.mark.parametrize("recipe", ["lora", "ladder", "cached"])
def test_what_is_frozen_has_neither_state_nor_gradient(
    recipe: str, tmp_path: Path
) -> None:
    program = _program(recipe, tmp_path)
    trained = jax.tree.leaves(program.trained)
    params = jax.tree.leaves(program.shapes["params"])
    size = lambda leaves: sum(leaf.size for leaf in leaves)
    assert 0 < size(trained) < size(params)
    # Two moments and three counts.
    state = jax.tree.leaves(program.shapes["state"])
    assert 0 <= size(state) - 2 * size(trained) <= 3
    assert {leaf.dtype.name for leaf in trained} == {"float32"}
    frozen = size(params) - size(trained)
    narrow = [leaf for leaf in params if leaf.dtype.name == "bfloat16"]
    assert size(narrow) == frozen


@pytest.mark.parametrize("recipe", RECIPES)
def test_kernels_and_their_state_are_divided_over_both_axes(
    recipe: str, tmp_path: Path
) -> None:
    program = _program(recipe, tmp_path)
    divided = {"data", "model"}
    for path, leaf in jax.tree.leaves_with_path(program.shapes["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith(("layers/", "head/")) and name.endswith("kernel"):
            assert set(leaf.sharding.spec) - {None} == divided, name
        if name.startswith("side/") and name.endswith("kernel"):
            assert set(leaf.sharding.spec) - {None} == {"data"}, name
    places = {
        leaf.sharding
        for leaf in jax.tree.leaves(program.shapes["state"])
        if leaf.size >= 4096
    }
    assert all(set(place.spec) & divided for place in places)


def test_taps_of_texts_are_those_of_their_numbers() -> None:
    windows = np.arange(12).reshape(4, 3)
    taps = np.arange(4)[:, None, None]
    texts = Texts(windows, taps)
    found = texts[np.array([2, 0])]
    assert found["tokens"].tolist() == [[6, 7, 8], [0, 1, 2]]
    assert found["taps"].ravel().tolist() == [2, 0]
    assert len(texts) == 4 and set(Texts(windows)[np.array([1])]) == {"tokens"}


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            {"mesh": "data=1,model=8", "length": 30},
            "--length: 30, is not divisible by ",
        ),
        (
            {"microbatches": 3},
            "16 is not divisible by data=4 of the mesh times --micro",
        ),
        ({"length": 509}, "--length: must be at most 128, or a multiple of it, got 5"),
        ({"remat": "some"}, "invalid choice: 'some'"),
    ],
)
def test_what_does_not_divide_is_named(
    wrong: dict[str, Any],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = _flags("adamw", tmp_path / "out", tmp_path / "cache", **wrong)
    del given["--compilation-cache"]
    assert main([str(part) for pair in given.items() for part in pair]) == 2
    assert text in capsys.readouterr().err
