"""Errors about a pattern show what is near it, and how large trees begin."""

import re
from typing import Any

import jax.numpy as jnp
import pytest

import optaxtricks as ot
from optaxtricks._core.known_paths import known_paths

BACKBONE = [f"backbone/layers/{i}/{name}" for i in range(29) for name in "bw"]
LARGE = [*BACKBONE, "side/rungs/down", "side/rungs/up", "side/top"]


def test_small_trees_are_listed_whole() -> None:
    assert known_paths(["a", "b/c"], "x") == "Paths: 'a', 'b/c'."
    assert known_paths([], "x") == "Paths: (none)."


def test_large_trees_show_tops_and_the_nearest_paths() -> None:
    text = known_paths(LARGE, r"^sides?/rung/\w+")
    tops, near = text.split(" Nearest: ")
    assert tops == "Top level: 'backbone' (58 leaves), 'side' (3 leaves)."
    assert near.startswith("'side/rungs/down', 'side/rungs/up', ")
    assert near.endswith("'.") or near.endswith("more.")


def test_the_top_level_is_where_paths_part() -> None:
    text = known_paths([f"params/{path}" for path in LARGE])
    assert text.startswith("Top level: 'params/backbone' (58 leaves), ")
    assert " Such as: 'params/backbone/layers/0/b', " in text
    assert "'a/b' (40 leaves)" in known_paths(["a/b"] * 40)


def test_every_error_about_a_pattern_shows_them() -> None:
    tree: Any = {path: jnp.ones(2) for path in LARGE}
    text = re.escape("Top level: 'backbone' (58 leaves), 'side' (3 leaves). Nearest: ")
    for call in (
        lambda: ot.select(tree, "^ladder/"),
        lambda: ot.label_by_path({"^ladder/": "a"}, default="b")(tree),
        lambda: ot.scale_by_path({"^ladder/": 2.0}).init(tree),
        lambda: ot.per_layer(ot.scale_by_lion(), {"^ladder/": 0}).init(tree),
        lambda: ot.scale_by_depth(0.5, layers=r"ladder/(\d+)").init(tree),
        lambda: ot.structural_prune(
            tree, tree, [ot.PruneGroup({"^ladder/": 0})], keep_fraction=0.5
        ),
    ):
        with pytest.raises(ValueError, match=text):
            call()
