"""What `PruneGroup` and `structural_prune` reject, by message."""

from typing import Any, cast

import jax
import numpy as np
import pytest

import optaxtricks

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

TREE = {"a": np.ones((4, 6)), "b": {"c": np.ones(6), "d": np.ones(())}}
GROUP = ot.PruneGroup({"a": 1})


def run(groups=(GROUP,), importance=TREE, keep_fraction: Any = 0.5):
    return ot.structural_prune(TREE, importance, groups, keep_fraction=keep_fraction)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"members": "a"}, TypeError, "members must map patterns to axes, got 'a'"),
        ({"members": {}}, ValueError, "members must hold at least one pattern"),
        ({"members": {1: 0}}, TypeError, "members must map str to int"),
        ({"members": {"a": 0.0}}, TypeError, "'a' to an int axis, got 0.0"),
        ({"members": {"a": True}}, TypeError, "'a' to an int axis, got True"),
        ({"members": {"(": 0}}, ValueError, r"members '\(' is not a regular"),
        (
            {"members": {"a": 0}, "followers": ["b"]},
            TypeError,
            "followers must map patterns",
        ),
        (
            {"members": {"a": 0}, "followers": {"b": "0"}},
            TypeError,
            "followers must map 'b' to an int axis",
        ),
        ({"members": {"a": 0}, "heads": 0}, ValueError, "heads must be at least 1"),
        ({"members": {"a": 0}, "heads": 2.0}, TypeError, "heads must be an int"),
    ],
)
def test_bad_groups(arguments, error, message):
    with pytest.raises(error, match=message):
        ot.PruneGroup(**arguments)


def groups(*members, **options):
    return [ot.PruneGroup(one, **options) for one in members]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": GROUP}, TypeError, "groups must be a sequence of PruneGroup"),
        ({"groups": [{"a": 1}]}, TypeError, "groups must be a sequence of PruneGroup"),
        ({"groups": []}, ValueError, "groups must hold at least one"),
        ({"keep_fraction": 0.0}, ValueError, r"keep_fraction must lie in \(0, 1\]"),
        ({"keep_fraction": 1.5}, ValueError, r"keep_fraction must lie in \(0, 1\]"),
        ({"keep_fraction": "a"}, TypeError, "keep_fraction must be a number"),
        (
            {"keep_fraction": 0.05},
            ValueError,
            r"groups\[0\]: keep_fraction=0.05 of 6 channels leaves none",
        ),
        (
            {"groups": groups({"a": 1}, heads=3), "keep_fraction": 0.2},
            ValueError,
            "of 2 channels in each of 3 heads leaves none",
        ),
        (
            {"groups": groups({"a": 1}, heads=4)},
            ValueError,
            r"groups\[0\]: heads=4 does not divide its 6 channels",
        ),
        (
            {"groups": groups({"a": 1, "nope": 0})},
            ValueError,
            r"groups\[0\] members: 'nope' matches no leaf. Paths: 'a', 'b/c', 'b/d'",
        ),
        (
            {"groups": groups({"a": 1}, followers={"nope": 0})},
            ValueError,
            r"groups\[0\] followers: 'nope' matches no leaf",
        ),
        (
            {"groups": groups({"a": 2})},
            ValueError,
            r"axis 2 is out of range for the leaf at 'a' of shape \(4, 6\)",
        ),
        ({"groups": groups({"a": -3})}, ValueError, "axis -3 is out of range"),
        (
            {"groups": groups({"b": 0})},
            ValueError,
            r"axis 0 is out of range for the leaf at 'b/d' of shape \(\)",
        ),
        (
            {"groups": groups({"a": 0, "c": 0})},
            ValueError,
            r"groups\[0\] has axes of different sizes: 'a' axis 0: 4; 'b/c' axis 0: 6",
        ),
        (
            {"groups": groups({"a": 1}, followers={"^a": 0})},
            ValueError,
            "'a' axis 1: 6; 'a' axis 0: 4",
        ),
        (
            {"groups": groups({"a": 1}, {"c": 0, "^a": -1})},
            ValueError,
            r"groups\[1\]: axis 1 of the leaf at 'a' is named twice",
        ),
        (
            {"groups": groups({"a": 1, "^a$": 1})},
            ValueError,
            r"groups\[0\]: axis 1 of the leaf at 'a' is named twice",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        run(**arguments)


BAD = np.ones((4, 6))
BAD[0, :3] = [np.nan, -1, -2]


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        ({"b": TREE["b"]}, ValueError, "no leaf at 'a', which is a member"),
        ({"a": None}, ValueError, "no leaf at 'a', which is a member"),
        (
            {"a": np.ones((6, 4))},
            ValueError,
            r"at 'a' has shape \(6, 4\), but backbone",
        ),
        (
            TREE | {"b": {"c": np.ones(5)}},
            ValueError,
            r"importance at 'b/c' has shape \(5,\), but backbone has \(6,\)",
        ),
        (
            {"params": TREE},
            ValueError,
            "importance has leaves that backbone has not: 'params/a'.* 'a', 'b/c'",
        ),
        (TREE | {"a": BAD}, ValueError, "'a' has 1 NaN and 2 negative entries"),
        (TREE | {"a": BAD > 0}, TypeError, "real numbers.* 'a' has dtype bool"),
        (TREE | {"a": BAD * 1j}, TypeError, "real numbers.* 'a' has dtype complex128"),
    ],
)
def test_bad_importance(importance, error, message):
    with pytest.raises(error, match=message):
        run(importance=importance)


def test_importance_of_a_leaf_outside_the_groups_is_not_read():
    run(importance={"a": np.ones((4, 6)), "b": {"c": BAD[0], "d": None}})


def test_traced_importance():
    with pytest.raises(TypeError, match=r"importance must be concrete, but .* 'a'"):
        jax.eval_shape(lambda tree: run(importance=tree), TREE)
