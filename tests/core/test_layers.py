"""Which axis of a leaf counts layers."""

from typing import Any

import jax.numpy as jnp
import optax
import pytest

from optaxtricks._core.layers import layer_axes

TREE = {
    "embed": jnp.ones((7, 4)),
    "layers": {"bias": jnp.ones((3, 4)), "kernel": jnp.ones((5, 3, 4))},
}


@pytest.mark.parametrize(
    ("stacked", "axes"),
    [
        (None, [None, None, None]),
        ("^layers/", [None, 0, 0]),
        (lambda path, leaf: leaf.ndim == 3, [None, None, 0]),
        ({"embed": False, "layers": True}, [None, 0, 0]),
        ({"^layers/bias": 0, "^layers/": 1}, [None, 0, 1]),
        ({"kernel": -2}, [None, None, 1]),
    ],
)
def test_selectors_mean_axis_zero_and_mappings_say_theirs(stacked, axes):
    assert layer_axes(TREE, stacked) == axes


def test_holes_show_that_a_pattern_is_no_misprint():
    masked: Any = {"embed": TREE["embed"], "layers": optax.MaskedNode()}
    assert layer_axes(masked, {"^layers": 1}) == [None]
    assert layer_axes(masked, "^layers") == [None]
    assert layer_axes({}, {"^layers": 1}) == []


@pytest.mark.parametrize(
    ("stacked", "error", "message"),
    [
        ("^blocks", ValueError, "stacked '\\^blocks' matches no leaf. Paths: 'embed'"),
        ({"^blocks": 1}, ValueError, "patterns that match no leaf: '\\^blocks'"),
        ({"bias": 2}, ValueError, r"'layers/bias' has shape \(3, 4\) and so no layer"),
        ({"bias": -3}, ValueError, "no layer axis -3"),
        ({3: 1}, TypeError, "must map str to int, got the key 3"),
        ({"bias": 1.0}, TypeError, "stacked must be a pattern, a predicate"),
        ({"(": 0}, ValueError, "stacked '\\(' is not a regular expression"),
        (3, TypeError, "stacked must be a pattern"),
    ],
)
def test_bad_layer_axes(stacked, error, message):
    with pytest.raises(error, match=message):
        layer_axes(TREE, stacked)
