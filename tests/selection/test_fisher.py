"""Fisher information: vectors, a NumPy oracle, invariances and sampled labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from tests.selection.fisher_model import (
    PARAMS,
    X,
    Y,
    assert_close,
    batches,
    log_likelihood,
    log_probabilities,
    reference,
)

# Vectors


def test_batch_means_cancel_and_flip_the_ranking():
    examples = jnp.array([[1.0, 2], [-1, 2], [3, 0], [-3, 0]])
    run = lambda batches, **how: ot.fisher_information(
        lambda params, x: params @ x, jnp.zeros(2), batches, **how
    ).tolist()
    pairs = [examples[:2], examples[2:]]
    assert run(pairs) == run(examples) == [5, 2]
    assert run(pairs, per="batch") == [0, 2]
    assert run(examples, per="batch") == [0, 1]


def test_softmax_of_one_zero_minus_one():
    logits = jnp.array([1.0, 0.0, -1.0])
    observed = ot.fisher_information(
        lambda logits, y: jax.nn.log_softmax(logits)[y], logits, jnp.zeros(1, jnp.int32)
    )
    np.testing.assert_allclose(observed, [0.112064, 0.059892, 0.008106], atol=1e-6)
    expected = ot.fisher_information(
        lambda logits, _: jax.nn.log_softmax(logits),
        logits,
        jnp.zeros(1),
        labels="expected",
    )
    np.testing.assert_allclose(expected, [0.222695, 0.184836, 0.081925], atol=1e-6)


# Oracle


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("microbatch_size", [None, 3])
@pytest.mark.parametrize("labels", ["observed", "expected"])
def test_per_example_matches_the_oracle(labels, microbatch_size, power):
    function = log_likelihood if labels == "observed" else log_probabilities
    got = ot.fisher_information(
        function,
        PARAMS,
        batches(4, 8),
        labels=labels,
        power=power,
        microbatch_size=microbatch_size,
    )
    assert_close(got, reference(labels, power=power))


@pytest.mark.parametrize(
    ("clip_norm", "microbatch_size", "power"),
    [(None, None, 2), (0.3, None, 2), (0.3, 3, 1), (None, 1, 1)],
)
def test_per_batch_matches_the_oracle(clip_norm, microbatch_size, power):
    got = ot.fisher_information(
        log_likelihood,
        PARAMS,
        batches(4, 8),
        per="batch",
        power=power,
        clip_norm=clip_norm,
        microbatch_size=microbatch_size,
    )
    assert_close(got, reference("observed", "batch", power, clip_norm, (4, 8)))


@pytest.mark.parametrize("labels", ["observed", "expected", "sampled"])
def test_grouping_into_batches_changes_nothing(labels):
    function = log_likelihood if labels == "observed" else log_probabilities
    key = 7 if labels == "sampled" else None
    run = lambda stream, **how: ot.fisher_information(
        function, PARAMS, stream, labels=labels, key=key, **how
    )
    whole = run((X, Y))
    for splits, size in [((5,), 64), ((1, 9), 3)]:
        assert_close(run(batches(*splits), microbatch_size=size), whole)


# Sampled labels


def test_sampled_labels_converge_to_the_expectation():
    count, logits = 20_000, jnp.array([1.0, 0.0, -1.0])
    run = lambda **how: ot.fisher_information(
        lambda logits, _: jax.nn.log_softmax(logits),
        logits,
        np.zeros((count, 1), np.float32),
        microbatch_size=1000,
        **how,
    )
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    scores = (np.eye(3) - p) ** 2  # of class c, by row
    error = np.sqrt((p @ scores**2 - (p @ scores) ** 2) / count)
    sampled = run(labels="sampled", key=0)
    assert (np.abs(sampled - p @ scores) < 5 * error).all()
    np.testing.assert_allclose(run(labels="expected"), p @ scores, rtol=1e-4)


def test_sampled_labels_depend_on_the_key_alone():
    run = jax.jit(
        lambda key: ot.fisher_information(
            log_probabilities, PARAMS, (X, Y), labels="sampled", key=key
        )
    )
    typed = run(jax.random.key(5))
    assert_close(run(jax.random.PRNGKey(5)), typed, rtol=0)
    assert not np.allclose(run(jax.random.key(6))["w"], typed["w"])
    from_int = ot.fisher_information(
        log_probabilities, PARAMS, (X, Y), labels="sampled", key=5
    )
    assert_close(from_int, typed)


def test_batch_means_of_sampled_labels():
    run = lambda **how: ot.fisher_information(
        log_probabilities, PARAMS, (X, Y), labels="sampled", key=5, **how
    )
    got = run(per="batch")
    assert_close(got, run(per="batch", microbatch_size=3))
    # The mean over one batch of the gradients whose squares `run()` averages.
    assert (np.asarray(got["w"]) <= np.asarray(run()["w"])).all()


def test_impossible_classes_have_no_say():
    masked = lambda logits, x: jax.nn.log_softmax(
        jnp.where(jnp.arange(4) < 3, logits, -jnp.inf)
    )
    got = ot.fisher_information(masked, jnp.arange(4.0), jnp.ones(1), labels="expected")
    p = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    np.testing.assert_allclose(got, [*(p * (1 - p)), 0], rtol=1e-5)


# Precision


def test_squares_beyond_float32():
    run = lambda x, **how: ot.fisher_information(
        lambda params, x: params @ x, jnp.zeros(1), jnp.array([[x]]), **how
    ).tolist()
    assert run(1e-23) == [0]
    for size in 1e-18, 1e19:
        np.testing.assert_allclose(run(size), [size**2], rtol=1e-6)
    for size in 1e-30, 1e30:
        np.testing.assert_allclose(run(size, power=1), [size], rtol=1e-6)
    with pytest.raises(ValueError, match="Fisher information is not finite"):
        run(1e20)


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_a_term_below_the_rounding_of_the_sum_is_lost(batch):
    roots = jnp.array([2.0**12] + [0.7] * 8)[:, None]
    run = lambda examples: ot.fisher_information(
        lambda params, x: params @ x,
        jnp.zeros(1),
        [examples[i : i + batch] for i in range(0, 9, batch)],
    )
    assert run(roots).tolist() == [np.float32(2.0**24) / np.float32(9)]
    want = (2.0**24 + 8 * 0.49) / 9  # in the other order nothing is
    np.testing.assert_allclose(run(roots[::-1]), [want], rtol=2**-24)
