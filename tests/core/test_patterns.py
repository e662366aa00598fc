"""Numbers in patterns are whole ones."""

import re
from typing import Any

import jax.numpy as jnp
import pytest

import optaxtricks as ot
from optaxtricks._core.patterns import whole_numbers

PATHS = ["layers/0", "layers/1", "layers/10", "layers/11", "layers/21", "bias2"]
LAYERS = PATHS[:-1]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("layers/1", ["layers/1"]),
        ("layers/1$", ["layers/1"]),
        ("(layers/1)", ["layers/1"]),
        ("(?i)LAYERS/1", ["layers/1"]),
        ("layers/(0|1)", ["layers/0", "layers/1"]),
        ("layers/(?:0|1)", ["layers/0", "layers/1"]),
        ("layers/(?P<n>0|1)", ["layers/0", "layers/1"]),
        ("layers/0|layers/1", ["layers/0", "layers/1"]),
        ("bias|layers/1", ["layers/1", "bias2"]),
        ("layers/1|bias", ["layers/1", "bias2"]),
        ("layers/[01]", ["layers/0", "layers/1"]),
        ("layers/[0-1]", ["layers/0", "layers/1"]),
        ("1(/kernel)?", ["layers/1"]),
        ("layers/1{1}", ["layers/1"]),
        (r"layers/\d", LAYERS),
        (r"layers/\d|layers/1", LAYERS),
        ("layers/[0-9]", LAYERS),
        (r"layers/\d{2}", ["layers/10", "layers/11", "layers/21"]),
        (r"layers/1\d", ["layers/10", "layers/11"]),
        (r"layers/(1)\1", ["layers/11"]),
        ("1", ["layers/1"]),
        ("0|1", ["layers/0", "layers/1"]),
        ("1$", ["layers/1"]),
        ("layers/1+", ["layers/1", "layers/11"]),
        ("layers/1?", [*LAYERS[:3], "layers/11", "layers/21"]),
        ("layers/", LAYERS),
        ("", PATHS),
    ],
)
def test_a_number_at_an_end_is_a_whole_one(pattern: str, found: list[str]) -> None:
    for one in (pattern, re.compile(pattern)):
        search = whole_numbers(one).search
        got = [path for path in PATHS if search(path)]
        assert got == found


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("1/kernel", "layers/1/kernel", True),
        ("1/kernel", "layers/11/kernel", False),
        ("^1", "1/kernel", True),
        ("^1", "10/kernel", False),
        ("layers/1/", "layers/1/w", True),
        ("layers/1/", "layers/11/w", False),
        ("layers_1", "layers_1", True),
        ("layers_1", "layers_12/w", False),
        (r"layers[/_]1\.w", "layers/1.w", True),
        (r"a{2}", "aa2", True),
        (r"[^1]", "a2", True),
        (r"[]1]", "]", True),
        (r"\[1", "[12", False),
    ],
)
def test_either_end(pattern: str, path: str, found: bool) -> None:
    assert bool(whole_numbers(pattern).search(path)) is found


def test_other_patterns_are_what_they_were() -> None:
    for pattern in (
        "layers/",
        r"layers[/_](\d+)",
        "bias$",
        "(a|b)c",
        "(?x) layers/1 # c",
    ):
        assert whole_numbers(pattern) is re.compile(pattern)
    with pytest.raises(re.error):
        whole_numbers("(")


def test_everything_that_takes_patterns_takes_numbers_whole() -> None:
    params: Any = {"layers": {str(i): jnp.ones((2, 3)) for i in range(12)}}
    one = {str(i): i == 1 for i in range(12)}
    assert ot.select(params, "layers/1")["layers"] == one
    labels = ot.label_by_path({"layers/1": "yes"}, default="no")(params)["layers"]
    assert {name: label == "yes" for name, label in labels.items()} == one
    group = ot.PruneGroup({"layers/1": 0})
    out = ot.structural_prune(params, params, [group], keep_fraction=0.5)["layers"]
    assert {name: leaf.shape == (1, 3) for name, leaf in out.items()} == one
    zero: Any = ot.scale_by_path({"layers/1": 0.0})
    out = zero.update(params, zero.init(params))[0]["layers"]
    assert {name: not leaf.any() for name, leaf in out.items()} == one
    tx: Any = ot.scale_by_path({"layers/1": [0.0, 1.0]}, stacked={"layers/1": 0})
    out = tx.update(params, tx.init(params))[0]["layers"]
    assert {name: not leaf[0].any() for name, leaf in out.items()} == one
