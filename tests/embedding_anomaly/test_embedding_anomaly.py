"""The benchmark from end to end, its text, its variants, and bad options."""

import math

import jax
import numpy as np
import pytest

from benchmarks.embedding_anomaly import model
from benchmarks.embedding_anomaly.__main__ import main
from benchmarks.embedding_anomaly.text import UNKNOWN, read_text
from benchmarks.embedding_anomaly.training import SIZES
from benchmarks.embedding_anomaly.variants import DECAY, LION_RATE, VARIANTS
from tests.comparison_command import assert_refused, assert_written, run_tiny

pytestmark = pytest.mark.slow

# Of two methods and two models; compilation is what takes time here.
SOME = ("tiger", "lion_half_swap")
LAZY = [name for name in VARIANTS if name.startswith("lazy")]
TINY = SIZES["tiny"]
TYINGS = ("none", "plain", "half_swap")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The command's folder and result, run once."""
    out = tmp_path_factory.mktemp("out")
    return out, run_tiny(main, out, "--variants", *SOME)


def test_the_command_writes_json_and_plot(tiny_run):
    out, results = tiny_run
    assert_written(out, "embedding_anomaly", results)
    assert list(results["variants"]) == list(SOME)


def test_the_record_of_a_variant(tiny_run):
    _, results = tiny_run
    assert results["settings"]["seeds"] == 2
    for entry in results["variants"].values():
        assert entry["curves"]["step"] == [4, 8]
        assert {len(curve) for curve in entry["curves"].values()} == {2}
        assert 0 < entry["held_out_loss"]["mean"] < 2 * math.log(TINY.vocabulary)
        assert entry["held_out_loss"]["standard_error"] > 0
        assert entry["step_ms"] > 0
        final = entry["final_health"]["all"]["max_times_decay"]["mean"]
        assert final == pytest.approx(entry["curves"]["max_times_decay"][-1])
    state = {n: v["optimizer_state_bytes"] for n, v in results["variants"].items()}
    assert state["tiger"] > state["lion_half_swap"] > 0  # which has no output table


def test_the_text_is_the_same_at_every_call():
    first = read_text(TINY.vocabulary, TINY.files)
    read_text.cache_clear()
    second = read_text(TINY.vocabulary, TINY.files)
    assert first is not second
    for field in ("train", "held_out", "counts"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field))


def test_the_vocabulary_holds_the_most_frequent_words():
    text = read_text(TINY.vocabulary, TINY.files)
    assert text.train.min() == UNKNOWN and text.train.max() == TINY.vocabulary - 1
    assert (np.diff(text.counts[1:]) <= 0).all()
    assert text.counts.sum() == len(text.train)
    assert 0 < len(text.held_out) < len(text.train)
    bands = np.concatenate(list(text.bands().values()))
    np.testing.assert_array_equal(np.sort(bands), np.arange(1, TINY.vocabulary))


@pytest.fixture(scope="module")
def starts():
    """Fresh parameters for each way of tying."""
    sizes = {"vocabulary": 6, "width": 4, "context": 2}
    return {t: model.init(jax.random.key(0), tying=t, **sizes) for t in TYINGS}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", VARIANTS)
def test_what_a_variant_moves(name, starts):
    """All leaves; of the table's rows also those without a gradient, or not.

    A step with a gradient everywhere, then two with one in the table's row 0 only.
    Rows without a gradient rest under lazy rows, decay under the cautious sign, and
    drift under the others.
    """
    variant = VARIANTS[name]
    before = starts[variant.tying]
    tx = variant.build()
    update = jax.jit(tx.update)
    ones = jax.tree.map(np.ones_like, before)
    row = np.zeros((6, 4), np.float32)
    row[0] = 1
    params, state, path = before, tx.init(before), []
    for table in (ones["embedding"], row, row):
        updates, state = update({**ones, "embedding": table}, state, params)
        params = jax.tree.map(np.add, params, updates)
        path.append(params)
    assert all(
        leaf.all()
        for leaf in jax.tree.leaves(jax.tree.map(np.not_equal, before, path[0]))
    )
    change = np.asarray(path[-1]["embedding"] - path[0]["embedding"])
    assert (change[0] != 0).all()
    if name in LAZY:
        assert (change[1:] == 0).all()
    elif name == "lion_cautious":
        kept = (1 - LION_RATE * DECAY) ** 2 - 1
        expected = kept * np.asarray(path[0]["embedding"][1:])
        np.testing.assert_allclose(change[1:], expected, rtol=1e-3, atol=1e-8)
    else:
        assert (change[1:] < 0).all()


@pytest.mark.parametrize("tying", TYINGS)
def test_the_model_starts_near_chance(tying):
    sizes = {"vocabulary": 50, "width": 8, "context": 3}
    params = model.init(jax.random.key(1), tying=tying, **sizes)
    windows = jax.random.randint(jax.random.key(2), (16, 4), 0, 50)
    compiled = jax.jit(model.loss, static_argnames="tying")
    loss = compiled(params, windows, tying=tying)
    assert float(loss) == pytest.approx(math.log(50), abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "huge"], "--size: invalid choice: 'huge'"),
        (["--seeds", "0"], "--seeds: must be a positive integer, got '0'"),
        (["--steps", "many"], "--steps: must be a positive integer, got 'many'"),
        (["--steps", "601"], "--steps: must be a multiple of 20, got 601"),
        (["--variants", "lyon"], "unknown variant 'lyon'; there are ['adam'"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_bad_options(capsys, arguments, message):
    assert_refused(main, arguments, message, capsys)


def test_out_is_a_file(capsys, tmp_path):
    (tmp_path / "file").touch()
    assert main(["--size", "tiny", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "cannot be written" in capsys.readouterr().err
