"""What is on the Axes is what went in; no global state of pyplot; clear errors."""

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import optaxtricks as ot

PLOTS: Any = ot.plots
DRAW = {
    "update_rms": lambda **how: PLOTS.update_rms([0.5, 0.25], **how),
    "active_rows": lambda **how: PLOTS.active_rows([0.5, 0.25], **how),
    "collapse": lambda **how: PLOTS.collapse([0.5, 0.25], **how),
    "kept_fraction": lambda **how: PLOTS.kept_fraction({"a": True}, **how),
    "embedding_drift": lambda **how: PLOTS.embedding_drift(np.ones((9, 2)), 0.5, **how),
}
each_plot = pytest.mark.parametrize("draw", DRAW.values(), ids=list(DRAW))


def _history() -> list[dict[str, Any]]:
    """What three steps of a run give."""
    labels = ot.label_by_path({"^emb": "emb"}, default="rest")
    tx = ot.monitor_groups(labels)
    params = {"emb": jnp.ones((4, 2)), "w": jnp.ones(3)}
    state, history = tx.init(params), []
    for row in range(3):
        grads = {
            "emb": jnp.zeros((4, 2)).at[:row].set(2.0),
            "w": jnp.full(3, row + 1.0),
        }
        _, state = tx.update(grads, state)
        history.append(ot.metrics(state))
    return history


def _lines(ax: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in ax.lines}


def test_metrics_of_a_run() -> None:
    history = _history()
    ax = PLOTS.update_rms(history, steps=[10, 20, 30])
    assert list(_lines(ax)) == ["updates/emb", "updates/rest"]
    assert _lines(ax)["updates/rest"] == [1.0, 2.0, 3.0]
    assert ax.lines[0].get_xdata().tolist() == [10, 20, 30]
    assert ax.get_yscale() == "linear"  # a zero has no logarithm
    ax = PLOTS.active_rows(history)
    assert _lines(ax)["updates/emb"] == [0.0, 25.0, 50.0]
    assert ax.lines[0].get_xdata().tolist() == [0, 1, 2]


def test_plain_arrays() -> None:
    ax = PLOTS.update_rms({"a": np.asarray([1.0, 0.1]), "b": jnp.ones(2)})
    assert _lines(ax) == {"a": [1.0, 0.1], "b": [1.0, 1.0]}
    assert ax.get_yscale() == "log"
    assert len({line.get_color() for line in ax.lines}) == 2
    ax = PLOTS.update_rms([3.0, 4.0])
    assert ax.lines[0].get_ydata().tolist() == [3.0, 4.0] and ax.get_legend() is None


def test_a_collapse_curve_has_both_measures() -> None:
    steps = [
        {"std_ratio": 1.0, "effective_rank": 0.5},
        {"std_ratio": 0.0, "effective_rank": 0.25},
    ]
    ax = PLOTS.collapse(steps)
    lines = _lines(ax)
    assert lines["std_ratio"] == [1.0, 0.0] and lines["effective_rank"] == [0.5, 0.25]


def test_bars_of_a_mask() -> None:
    mask = {
        "emb": jnp.arange(8).reshape(4, 2) < 2,
        "w": np.asarray([True] * 2),
        "z": False,
    }
    ax = PLOTS.kept_fraction(mask)
    assert [bar.get_width() for bar in ax.patches] == [25.0, 100.0, 0.0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["emb", "w", "z"]
    assert ax.lines[0].get_xdata() == [40.0, 40.0]
    low, high = ax.get_ylim()
    assert low > high  # the first leaf on top


def test_drift_of_rows_by_rank() -> None:
    table = np.zeros((3, 2))
    table[:, 1] = [-1.0, 4.0, 2.0]
    ax = PLOTS.embedding_drift(table, 0.5)
    assert ax.lines[0].get_xdata().tolist() == [1.0, 2.0, 3.0]
    assert ax.lines[0].get_ydata().tolist() == [0.5, 2.0, 1.0]
    ax = PLOTS.embedding_drift(table, 0.5, counts=[1, 5, 9])
    assert ax.lines[0].get_ydata().tolist() == [1.0, 2.0, 0.5]
    assert "frequency" in ax.get_xlabel()


def test_groups_of_ranks_hold_every_row_once() -> None:
    size = np.random.default_rng(0).exponential(size=5000)
    ax = PLOTS.embedding_drift(size[:, None], 1.0)
    medians = ax.lines[0].get_ydata()
    assert len(medians) <= 40
    assert medians[0] == size[0]  # the first rank is a group of its own
    (band,) = ax.collections
    corners = band.get_paths()[0].vertices[:, 1]
    assert corners.min() >= size.min() and corners.max() <= size.max()


@each_plot
def test_axes_are_the_callers_or_new_and_labelled(draw: Any) -> None:
    sys.modules.pop("matplotlib.pyplot", None)
    ax = Figure().subplots()
    assert draw(ax=ax) is ax
    other = draw()
    assert other is not ax and isinstance(other.figure, Figure)
    assert other.get_xlabel() and (other.get_ylabel() or other.patches)
    other.figure.canvas.draw()
    assert "matplotlib.pyplot" not in sys.modules
    with pytest.raises(TypeError, match="ax must be a matplotlib Axes, got int"):
        draw(ax=3)


def test_unusable_histories() -> None:
    rms = PLOTS.update_rms
    with pytest.raises(ValueError, match=r"no entry that ends in '/rms'.*'loss'"):
        rms([{"loss": 1.0}])
    with pytest.raises(ValueError, match=r"lacks \['a/rms'\] at position 1"):
        rms([{"a/rms": 1.0}, {}])
    with pytest.raises(ValueError, match=r"one length, got \{'a': 1, 'b': 2\}"):
        rms({"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"steps must have shape \(2,\)"):
        rms([1.0, 2.0], steps=[1])
    with pytest.raises(ValueError, match="history must have 1 axes"):
        rms([])
    with pytest.raises(ValueError, match="at least one curve"):
        rms({})
    with pytest.raises(TypeError, match=r"history\['a'\] must hold real numbers"):
        rms({"a": ["x"]})
    with pytest.raises(ValueError, match=r"history\['a'\] must lie in \[0, 1\]"):
        PLOTS.active_rows({"a": [0.5, 1.5]})


def test_unusable_masks_and_tables() -> None:
    with pytest.raises(ValueError, match="mask is empty"):
        PLOTS.kept_fraction({})
    with pytest.raises(TypeError, match="its leaf at 'a' is float32"):
        PLOTS.kept_fraction({"a": jnp.ones(3)})
    drift = PLOTS.embedding_drift
    with pytest.raises(ValueError, match="table must have 2 axes"):
        drift(np.ones(3), 0.1)
    with pytest.raises(ValueError, match="weight_decay must be positive"):
        drift(np.ones((3, 2)), 0.0)
    with pytest.raises(ValueError, match=r"counts must have shape \(3,\)"):
        drift(np.ones((3, 2)), 0.1, counts=[1])
