"""What cannot be a ladder, a tap or a side block is an error that says why."""

from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from tests.nn.ladders import WIDTH, linen_ladder, nnx_ladder, taps

BAD: list[tuple[dict[str, Any], Any, str]] = [
    ({"reduction": 5}, ValueError, "reduction=5 and width=12"),
    ({"reduction": 0}, ValueError, "reduction must be at least 1, got 0"),
    ({"width": 2.0}, TypeError, "width must be an int"),
    ({"num_layers": 0}, ValueError, "num_layers must be at least 1"),
    ({"num_heads": 3}, ValueError, "got 3 heads and a width of 12 // 3 = 4"),
    ({"gate": "tanh"}, ValueError, "gate must be one of .*'vector'.*, got 'tanh'"),
    ({"merge": "top"}, ValueError, "merge must be one of .*'gated'.*, got 'top'"),
    ({"gate": "constant"}, ValueError, "gate_value goes with gate='constant'"),
    ({"gate_value": 0.5}, ValueError, "gate_value goes with gate='constant'"),
    ({"gate": "constant", "gate_value": 1.5}, ValueError, r"gate_value .*\[0, 1\]"),
    ({"gate": "constant", "gate_value": abs}, TypeError, "gate_value must be a number"),
    ({"temperature": 0.0}, ValueError, "temperature must be positive"),
    ({"param_dtype": jnp.int32}, ValueError, "param_dtype must be a floating dtype"),
    ({"param_dtype": None}, TypeError, "param_dtype must be a dtype, got None"),
    ({"keep": []}, ValueError, r"keep must .* \[0, 4\), at least one, got \[\]"),
    ({"keep": [0, 4]}, ValueError, r"indices in \[0, 4\), .*got \[0, 4\]"),
    ({"keep": [-1, 2]}, ValueError, r"got \[-1, 2\]"),
    ({"keep": [2, 1]}, ValueError, r"ascending .*got \[2, 1\]"),
    ({"keep": [1, 1]}, ValueError, r"ascending .*got \[1, 1\]"),
    ({"keep": [0.5]}, TypeError, r"keep must be a sequence of ints, got \[0.5\]"),
    ({"keep": 3}, TypeError, "keep must be a sequence of ints, got 3"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_bad_options_are_errors_of_both(options: Any, error: Any, message: str) -> None:
    for make in nnx_ladder, linen_ladder:
        with pytest.raises(error, match=message):
            make(**options)


def test_bad_taps_are_errors() -> None:
    ladder, x = nnx_ladder(keep=[0, 2]), taps()
    with pytest.raises(ValueError, match=r"over 4 layers needs 5 taps, .* got 4"):
        ladder(x[1:])
    with pytest.raises(ValueError, match=r"layer 2 .* width 12, got shape \(2, 5, 6\)"):
        ladder([*x[:3], x[3][..., :6], x[4]])
    with pytest.raises(ValueError, match=r"embedding .* width 12, got shape \(\)"):
        ladder([jnp.ones(()), *x[1:]])
    with pytest.raises(ValueError, match=r"layer 0 .*\(2, 5, 12\), got \(1, 5, 12\)"):
        ladder([x[0], x[1][:1], *x[2:]])
    with pytest.raises(TypeError, match="layer 0 must be an array, got a NoneType"):
        ladder([x[0], None, *x[2:]])
    with pytest.raises(TypeError, match="floating-point, got int32"):
        ladder([x[0].astype(jnp.int32), *x[1:]])
    with pytest.raises(ValueError, match=r"a top .* shape \(2, 5, 12\), got None"):
        ladder([*x[:4], None])
    with pytest.raises(ValueError, match=r"a top .*, got shape \(2, 5, 6\)"):
        ladder.merge_top(ladder.side_state(x), x[-1][..., :6])
    with pytest.raises(ValueError, match=r"state of width 4, got shape \(2, 5, 12\)"):
        ladder.merge_top(x[0], x[-1])
    with pytest.raises(ValueError, match="merge=None has nothing to merge"):
        nnx_ladder(merge=None).merge_top(x[0], x[-1])


def test_a_block_that_changes_the_shape_is_an_error() -> None:
    wide = lambda width, layer, rngs: nnx.Linear(width, WIDTH, rngs=rngs)
    with pytest.raises(
        ValueError, match=r"layer 0 .*\(2, 5, 4\) .*got shape \(2, 5, 12\)"
    ):
        nnx_ladder(wide)(taps())
    pair = lambda width, layer, rngs: lambda h: (h, h)
    with pytest.raises(ValueError, match="same shape, got tuple"):
        nnx_ladder(pair)(taps())
