"""What `fisher_information` rejects, by message."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot

LOGITS = jnp.zeros(3)
LABELS = np.zeros(4, np.int32)


def observed(logits, y):
    return jax.nn.log_softmax(logits)[y]


def all_labels(logits, _):
    return jax.nn.log_softmax(logits)


def run(function=observed, params=LOGITS, batches=LABELS, **how):
    return ot.fisher_information(function, params, batches, **how)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": "true"}, ValueError, "labels must be one of"),
        ({"per": "epoch"}, ValueError, "per must be one of"),
        ({"power": 3}, ValueError, r"power must be one of \[1, 2\], got 3"),
        ({"function": None}, TypeError, "log_likelihood must be callable"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
        ({"microbatch_size": 0}, ValueError, "microbatch_size must be at least 1"),
        ({"microbatch_size": 2.0}, TypeError, "microbatch_size must be an int"),
        ({"clip_norm": 1.0}, ValueError, "clip_norm needs per='batch'"),
        ({"clip_norm": 0.0, "per": "batch"}, ValueError, "clip_norm must be positive"),
        ({"labels": "sampled"}, ValueError, "labels='sampled' needs a key"),
        ({"labels": "sampled", "key": "a"}, TypeError, "key must be an int"),
        ({"key": 0}, ValueError, "key goes with labels='sampled', not with 'observed'"),
        ({"labels": "expected", "per": "batch"}, ValueError, "needs per='example'"),
        ({"where": "bias"}, ValueError, "where 'bias' matches no leaf"),
        ({"where": 1}, TypeError, "where must be a pattern"),
    ],
)
def test_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        run(**arguments)


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], ValueError, "batches is empty"),
        (iter(()), ValueError, "batches is empty"),
        ((), ValueError, "batch 0 holds no arrays"),
        (None, ValueError, "batch 0 holds no arrays"),
        ({}, ValueError, "batch 0 holds no arrays"),
        ([LABELS, None], ValueError, "batch 1 holds no arrays"),
        (LABELS[:0], ValueError, "batch 0 holds no examples"),
        (3, TypeError, "one pytree of arrays or an iterable of such pytrees, got 3"),
        ("abc", TypeError, "one pytree of arrays or an iterable"),
        (np.int32(3), ValueError, "leaf at '' is a scalar"),
        ({"x": [1, 2]}, ValueError, "leaf at 'x/0' is a scalar"),
        ({"x": np.array(["a", "b"])}, TypeError, "leaf at 'x' is a ndarray of dtype"),
        ([{"x": iter(())}], TypeError, "leaf at 'x' is a tuple_iterator of dtype"),
        (
            {"x": LABELS, "y": LABELS[:3]},
            ValueError,
            r"leaves of different leading sizes: \{'x': 4, 'y': 3\}",
        ),
        (((LABELS, LABELS), (LABELS, LABELS)), ValueError, "batches is ambiguous"),
        (({"x": LABELS},), ValueError, "batches is ambiguous"),
        ([LABELS, np.ones((4, 2))], ValueError, "give one batch as a tuple or dict"),
        ([LABELS, (LABELS,)], ValueError, "batch 1 is laid out as"),
    ],
)
def test_bad_batches(batches, error, message):
    with pytest.raises(error, match=message):
        run(batches=batches)


def test_a_list_of_one_is_one_batch_of_tuples():
    pairs = (LABELS, LABELS), (LABELS, LABELS)
    got = run(lambda logits, example: observed(logits, example[1][0]), batches=[pairs])
    np.testing.assert_array_equal(got, run())


@pytest.mark.parametrize(
    ("function", "how", "error", "message"),
    [
        (all_labels, {}, ValueError, r"a scalar for labels='observed', got shape \(3,"),
        (lambda p, y: (p.sum(),), {}, ValueError, "for labels='observed', got tuple"),
        (lambda p, y: y, {}, TypeError, "log_likelihood must return floats, got int32"),
        (
            observed,
            {"labels": "expected"},
            ValueError,
            r"a vector of log-probabilities for labels='expected', got shape \(\)",
        ),
        (
            lambda p, y: p[:0],
            {"labels": "sampled", "key": 0},
            ValueError,
            r"labels='sampled', got shape \(0,\)",
        ),
        (
            lambda logits, y: logits,
            {"labels": "expected"},
            ValueError,
            "must return log-probabilities, but the log of their sum is 1.1 off 0",
        ),
        (
            lambda logits, y: logits,
            {"labels": "sampled", "key": 0, "per": "batch"},
            ValueError,
            "apply jax.nn.log_softmax",
        ),
    ],
)
def test_bad_log_likelihoods(function, how, error, message):
    with pytest.raises(error, match=message):
        run(function, **how)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("labels", ["observed", "expected"])
def test_a_score_that_is_not_finite_names_its_leaf(labels, bad):
    function = {
        "observed": lambda p, x: (p["good"] + x * p["layer"]["bad"]).sum(),
        "expected": lambda p, x: jax.nn.log_softmax(p["good"] + x * p["layer"]["bad"]),
    }[labels]
    params = {"good": jnp.zeros(2), "layer": {"bad": jnp.zeros(2)}}
    message = "Fisher information is not finite at .*'layer/bad'"
    with pytest.raises(ValueError, match=message):
        run(function, params, np.array([1.0, bad], np.float32), labels=labels)


def test_leaves_that_cannot_be_differentiated():
    function = lambda params, y: observed(params["w"], y)
    params = {"w": LOGITS, "ids": jnp.arange(3)}
    with pytest.raises(TypeError, match="'ids' has dtype int32; leave it out with"):
        run(function, params)
    with pytest.raises(TypeError, match="not defined for complex numbers"):
        run(function, {"w": LOGITS.astype(jnp.complex64)})
    assert run(function, params, where="w")["ids"] is None
    with pytest.raises(TypeError, match="leaf at 'act' is a function"):
        run(function, {"w": LOGITS, "act": lambda x: x}, where="w")


def test_progress_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match=r"needs rich.*optaxtricks\[demo\]"):
        run(progress=True)
