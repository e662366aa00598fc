"""The benchmark from end to end, its parts, and bad options."""

import io
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

import optaxtricks as ot
from benchmarks.finetune.errors import InputError
from benchmarks.siamese import digits, model, probes, report
from benchmarks.siamese.__main__ import main
from benchmarks.siamese.training import SIZES
from benchmarks.siamese.variants import PREDICTOR, RATE, SWEEPS
from tests.comparison_command import assert_refused, assert_written, run_tiny
from tests.problems import assert_same

pytestmark = pytest.mark.slow

# One sweep only: compilation is what takes time here.
SOME = ("target_schedule",)
TINY = SIZES["tiny"]
STEPS = 10


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """The command's folder and result, run once."""
    out = tmp_path_factory.mktemp("out")
    with jax.numpy_rank_promotion("allow"):
        return out, run_tiny(main, out, "--sweeps", *SOME)


def test_the_command_writes_json_and_plot(tiny_run):
    out, results = tiny_run
    assert_written(out, "siamese", results)
    assert list(results["sweeps"]) == list(SOME)


def test_the_record_of_a_variant(tiny_run):
    _, results = tiny_run
    assert results["settings"]["seeds"] == 2
    for name in SOME:
        record = results["sweeps"][name]
        values = [entry["value"] for entry in record["entries"]]
        assert tuple(values) == SWEEPS[name].values
        for entry in record["entries"]:
            assert entry["curves"]["step"] == [3, 6]
            assert -1 <= entry["loss"]["mean"] < 1
            for measure in ("std_ratio", "effective_rank", "neighbours", "linear"):
                assert 0 <= entry[measure]["mean"] <= 1
            for measure in ("loss", "std_ratio", "effective_rank"):
                last = entry["curves"][measure][-1]
                assert last == pytest.approx(entry[measure]["mean"], abs=1e-6)
    assert set(results["baselines"]) == {"pixels", "untrained"}


def test_table_and_plot_of_all_sweeps(tiny_run):
    _, results = tiny_run
    record = results["sweeps"][SOME[0]]
    filled = lambda sweep: [{**record["entries"][0], "value": v} for v in sweep.values]
    sweeps = {n: {**record, "entries": filled(sweep)} for n, sweep in SWEEPS.items()}
    everything = {**results, "sweeps": sweeps}
    assert report.plot(everything)[1:4] == b"PNG"
    text = io.StringIO()
    rich.console.Console(width=80, file=text).print(report.table(everything))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    for name, sweep in SWEEPS.items():
        rows = [line for line in lines if f" {report.TITLES[name]}  " in line]
        assert len(rows) == len(sweep.values)


def test_values_of_a_sweep_differ(tiny_run):
    _, results = tiny_run
    for name in SOME:
        entries = results["sweeps"][name]["entries"]
        losses = [entry["loss"]["mean"] for entry in entries]
        assert len(set(losses)) == len(losses)


def grads_and_params():
    params = model.init(jax.random.key(0), pixels=64, width=16, feature=8)
    return jax.tree.map(jnp.ones_like, params), params


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", SWEEPS)
def test_what_the_first_and_the_last_step_move(name):
    """By the encoder's rate, which ends at 0, or the predictor's."""
    sweep = SWEEPS[name]
    grads, params = grads_and_params()
    for value in sweep.values[0], sweep.values[-1]:
        tx = optax.with_extra_args_support(sweep.build(value, STEPS))
        update, state = jax.jit(tx.update), tx.init(params)
        moved = []
        for _ in range(STEPS + 1):
            updates, state = update(grads, state, params)
            moved.append(updates)
        speed = value if sweep.number.startswith("predictor") else 1
        first, last = moved[0], moved[-1]
        # A bias is 0, so that decay adds nothing to its gradient of 1.
        bias = lambda tree, part: float(tree[part][0]["bias"][0])
        assert bias(first, "encoder") == pytest.approx(-RATE, rel=1e-5)
        assert bias(first, "predictor") == pytest.approx(-RATE * speed, rel=1e-5)
        assert bias(last, "encoder") == 0
        assert (bias(last, "predictor") != 0) == (name == "fixed_predictor")
        assert sweep.averaged == (optax.tree.get(state, "ema") is not None)
    assert all(ot.select(params, PREDICTOR)["predictor"][0].values())


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["target_decay", "target_schedule"])
def test_the_averages_of_a_sweep_have_its_decay(name):
    tx = optax.with_extra_args_support(SWEEPS[name].build(0.9, STEPS))
    params = {"predictor": [jnp.zeros(1)], "encoder": [jnp.zeros(1)]}
    moved = jax.tree.map(jnp.ones_like, params)
    _, state = jax.jit(tx.update)(params, tx.init(params), moved)
    # Decay of the weights takes 0.00015 of the 1 that the average goes 0.1 of.
    average = optax.tree.get(state, "ema")["encoder"][0]
    assert float(average[0]) == pytest.approx(0.1, rel=1e-3)


def test_the_stop_gradient_leaves_the_other_side_alone():
    _, params = grads_and_params()
    views = (jax.random.normal(jax.random.key(0), (12, 64)), jnp.eye(12, 64))
    some = lambda tree: any(leaf.any() for leaf in jax.tree.leaves(tree))

    @jax.jit
    def both(views):
        losses = [
            jax.value_and_grad(model.loss, argnums=(0, 1))(
                params, params, views, stop=stop
            )
            for stop in (True, False)
        ]
        return losses, model.loss(params, params, views[::-1], stop=True)

    with jax.numpy_rank_promotion("allow"):
        (closed, (online, target)), (opened, (other, reached)) = both(views)[0]
        swapped = both(views)[1]
    assert not some(target) and some(online["encoder"])
    assert some(reached["encoder"]) and not some(reached["predictor"])
    assert -1 <= closed <= 1
    assert float(closed) == pytest.approx(float(swapped), abs=1e-6)
    assert_same((closed, online), (opened, other), ulps=16)


def test_features_of_test_images_use_the_statistics_of_the_others():
    _, params = grads_and_params()
    x = jax.random.normal(jax.random.key(0), (30, 64))
    encode = jax.jit(model.encode, static_argnames="reference")
    with jax.numpy_rank_promotion("allow"):
        want = encode(params, x[:20])
        got = encode(params, x, reference=20)
        other = encode(params, x.at[25].set(9.0), reference=20)
    np.testing.assert_allclose(got[:20], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other[:25], got[:25], rtol=1e-5, atol=1e-6)


def test_a_view_shifts_cuts_and_keeps_to_its_image():
    images = jnp.zeros((400, 64)).at[:, 27].set(1.0)  # row 3, column 3
    with jax.numpy_rank_promotion("allow"):
        seen = np.asarray(digits.view(jax.random.key(0), images)).reshape(-1, 8, 8)
    bright = [np.argwhere(image > 0.6) for image in seen]
    places = {tuple(found[0]) for found in bright if len(found)}
    assert places == {(i, j) for i in (2, 3, 4) for j in (2, 3, 4)}
    lost = np.mean([len(found) == 0 for found in bright])
    assert 0 < lost < 0.25  # the square of 4 pixels has 49 places
    dark = np.delete(seen.reshape(400, -1), [18, 19, 20, 26, 27, 28, 34, 35, 36], 1)
    assert abs(dark.mean()) < 0.01
    assert dark.std() == pytest.approx(digits.NOISE, rel=0.05)


def test_the_split_is_fixed_and_disjoint():
    data = digits.read_digits(TINY.train, TINY.test)
    digits.read_digits.cache_clear()
    again = digits.read_digits(TINY.train, TINY.test)
    np.testing.assert_array_equal(data.test, again.test)
    assert data.train.shape == (100, 64) and data.test.shape == (50, 64)
    assert 0 <= float(data.train.min()) and float(data.train.max()) == 1
    rows = {image.tobytes() for image in np.asarray(data.train)}
    assert not rows & {image.tobytes() for image in np.asarray(data.test)}
    with pytest.raises(InputError, match=r"there are 1797 digits, not 1700 \+ 500"):
        digits.read_digits(1700, 500)


def test_probes_read_features_that_hold_the_label_and_no_others():
    data = digits.read_digits(200, 100)
    hot = lambda labels: jax.nn.one_hot(labels, 12) + 0.1
    features = (hot(data.train_labels), hot(data.test_labels))
    with jax.numpy_rank_promotion("allow"):
        measure = jax.jit(lambda features: probes.accuracies(features, data))
        found = measure(features)
        flat = measure(jax.tree.map(jnp.ones_like, features))
    assert {float(x) for x in found.values()} == {1.0}
    assert all(float(x) < 0.3 for x in flat.values())


def test_without_scikit_learn_the_message_says_what_to_install(capsys):
    digits.read_digits.cache_clear()
    with mock.patch.dict(sys.modules, {"sklearn.datasets": None}):
        assert main(["--size", "tiny"]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "huge"], "--size: invalid choice: 'huge'"),
        (["--seeds", "0"], "--seeds: must be a positive integer, got '0'"),
        (["--steps", "many"], "--steps: must be a positive integer, got 'many'"),
        (["--steps", "401"], "--steps: must be a multiple of 20, got 401"),
        (["--sweeps", "stop"], "unknown sweep 'stop'; there are ['stop_gradient'"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_bad_options(capsys, arguments, message):
    assert_refused(main, arguments, message, capsys)
