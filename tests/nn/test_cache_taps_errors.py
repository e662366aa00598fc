"""Arguments that `cache_taps` rejects, and data that change under its hands."""

from typing import Any, cast

import pytest
from flax import nnx

import optaxtricks
from tests.nn.tap_data import DATA, PARAMS, Loader, backbone, batches, cached

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)
cache_taps = ot.nn.cache_taps


class Shuffled:
    def __init__(self, orders):
        self.orders = iter(orders)

    def __iter__(self):
        stream = batches()
        return iter([stream[i] for i in next(self.orders)])


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        ([[0, 1, 2, 3], [0, 2, 1, 3]], "batch 1 is another one the second time"),
        ([[0, 1, 2], [0, 1, 2, 3]], "batch 3 is another one the second time"),
        ([[0, 1, 2, 3], [0, 1]], "4 came the first time, but 2 the second"),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_data_that_changes_between_readings(tmp_path, orders, message, in_folder):
    folder = tmp_path if in_folder else None
    with pytest.raises(ValueError, match=message):
        cached(folder, Shuffled(orders))
    if in_folder:
        with pytest.raises(ValueError, match="unfinished"):
            ot.nn.TapCache.open(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backbone_fn": None}, TypeError, "backbone_fn must be callable"),
        ({"params": None}, ValueError, "folder needs params"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
        ({"dtype": "int8"}, ValueError, "dtype must be a floating dtype"),
        ({"batch_size": 2}, ValueError, "but batches is a stream already"),
        (
            {"batches": Loader(batches()), "batch_size": 2},
            ValueError,
            "but batches is a stream already",
        ),
        ({"batches": DATA, "batch_size": 0}, ValueError, "batch_size must be at least"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": 3}, TypeError, "batches must be one pytree of arrays or"),
        ({"backbone_fn": lambda p, b: ()}, ValueError, "returns no arrays"),
        (
            {"backbone_fn": lambda p, b: {"h": p["a"]}},
            ValueError,
            r"tap at 'h' shape \(4, 5\), but its leading axis must count the 3",
        ),
        (
            {"backbone_fn": lambda p, b: b["x"].sum()},
            ValueError,
            r"tap at '' shape \(\), but its leading axis",
        ),
        (
            {"backbone_fn": lambda p, b: nnx.State({"h": b["x"]})},
            TypeError,
            "dicts with string keys, lists and tuples, got a State",
        ),
        (
            {"backbone_fn": lambda p, b: {1: b["x"]}},
            TypeError,
            "dicts with string keys, lists and tuples, got a dict",
        ),
    ],
)
def test_bad_arguments(tmp_path, arguments, error, message):
    normal = {"backbone_fn": backbone, "batches": batches(), "params": PARAMS}
    with pytest.raises(error, match=message):
        cache_taps(**normal | {"folder": tmp_path / "new"} | arguments)
    # Nothing is left behind by what was never begun.
    assert not (tmp_path / "new").exists()
