"""What counts layers by itself has to see them all, and so not one at a time."""

from typing import Any

import jax.numpy as jnp
import pytest

import optaxtricks as ot

PARAMS = {"head": jnp.ones(2), "layers": {"b": jnp.ones((3, 4)), "w": jnp.ones((3, 4))}}
COUNTERS = {
    "scale_by_depth": ot.scale_by_depth(0.5, stacked="^layers/"),
    "scale_by_path": ot.scale_by_path(
        {"^layers/": jnp.arange(4.0)}, stacked="^layers/"
    ),
    "monitor_groups": ot.monitor_groups(
        ot.label_by_path({"^layers/": "layers"}, default="rest"), stacked="^layers/"
    ),
}


@pytest.mark.parametrize("inner", COUNTERS.values(), ids=COUNTERS)
def test_what_takes_stacked_is_refused_inside(inner: Any) -> None:
    """There it would take the rows of a layer for layers."""
    tx = ot.per_layer(inner, "^layers/")
    with pytest.raises(
        ValueError,
        match="stacked chooses 'layers/b', of which per_layer shows one layer at a "
        "time: put what counts layers outside of it",
    ):
        tx.init(PARAMS)


def test_depth_is_refused_inside_though_a_list_beside_the_stack_has_numbers() -> None:
    """There a stack would have the rate of the head."""
    params = {**PARAMS, "more": {"layers_0": jnp.ones(3), "layers_1": jnp.ones(3)}}
    tx = ot.per_layer(ot.scale_by_depth(0.5), "^layers/")
    with pytest.raises(
        ValueError,
        match="depths need all layers, but per_layer shows one of 'layers/b' at a "
        "time: put scale_by_depth outside of it",
    ):
        tx.init(params)
