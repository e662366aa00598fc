"""Fisher information: vectors, a NumPy oracle, invariances, streams and layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot
from tests.problems import LinenNet, NnxNet, Pair, PairNode, linen_params

FEATURES, CLASSES, EXAMPLES = 3, 4, 10


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PARAMS = {"w": values(FEATURES, CLASSES), "b": values(CLASSES, seed=1)}
X = values(EXAMPLES, FEATURES, seed=2)
Y = np.random.default_rng(3).integers(CLASSES, size=EXAMPLES).astype(np.int32)


def log_probabilities(params, example):
    x, _ = example
    return jax.nn.log_softmax(x @ params["w"] + params["b"])


def log_likelihood(params, example):
    return log_probabilities(params, example)[example[1]]


def reference(labels="observed", per="example", power=2, clip_norm=None, split=()):
    """The definition in NumPy loops, with the closed-form gradient of softmax."""
    groups = np.split(np.arange(EXAMPLES), split) if per == "batch" else range(EXAMPLES)
    sums = {"w": 0.0, "b": 0.0}
    for group in groups:
        terms, means = [], {"w": 0.0, "b": 0.0}
        for n in np.atleast_1d(group):
            x = X[n].astype(np.float64)
            logits = x @ PARAMS["w"] + PARAMS["b"]
            p = np.exp(logits) / np.exp(logits).sum()
            grads = [np.eye(CLASSES)[c] - p for c in range(CLASSES)]
            grads = [{"w": np.outer(x, g), "b": g} for g in grads]
            if labels == "expected":
                terms += [(p[c], grads[c]) for c in range(CLASSES)]
            for name in means:
                means[name] = means[name] + grads[Y[n]][name] / np.size(group)
        for weight, grad in terms or [(1.0, means)]:
            for name, g in grad.items():
                norm = np.linalg.norm(g)
                factor = 1 if clip_norm is None else min(1, clip_norm / (norm + 1e-6))
                sums[name] = sums[name] + weight * np.abs(factor * g) ** power
    return {name: total / len(groups) for name, total in sums.items()}


def assert_close(got, want, rtol=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


def batches(*splits):
    return [(X[i], Y[i]) for i in np.split(np.arange(EXAMPLES), splits)]


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
    run = lambda stream, **how: ot.fisher_information(
        function, PARAMS, stream, labels=labels, key=7, **how
    )
    whole = run((X, Y))
    for splits, size in [((5,), 64), ((1, 9), 3)]:
        assert_close(run(batches(*splits), microbatch_size=size), whole)


# Sampled labels


def test_sampled_labels_converge_to_the_expectation():
    count, logits = 20_000, jnp.array([1.0, 0.0, -1.0])
    run = lambda labels: ot.fisher_information(
        lambda logits, _: jax.nn.log_softmax(logits),
        logits,
        np.zeros((count, 1), np.float32),
        labels=labels,
        key=0,
        microbatch_size=1000,
    )
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    scores = (np.eye(3) - p) ** 2  # of class c, by row
    error = np.sqrt((p @ scores**2 - (p @ scores) ** 2) / count)
    assert (np.abs(run("sampled") - p @ scores) < 5 * error).all()
    np.testing.assert_allclose(run("expected"), p @ scores, rtol=1e-4)


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


# Streams


class Loader:
    def __iter__(self):
        return iter(batches(4, 8))


class OldLoader:
    def __getitem__(self, index):
        return batches(4, 8)[index]


@pytest.mark.parametrize(
    "stream",
    [
        lambda: batches(4, 8),
        lambda: iter(batches(4, 8)),
        lambda: (batch for batch in batches(4, 8)),
        Loader,
        OldLoader,
        lambda: [(X, Y)],
        lambda: (X, Y),
        lambda: Pair(b=X, w=Y),
        lambda: (jnp.asarray(X), Y.astype(np.int64)),
    ],
)
def test_every_kind_of_stream(stream):
    got = ot.fisher_information(
        lambda params, example: log_likelihood(params, tuple(example)), PARAMS, stream()
    )
    assert_close(got, reference())


def test_nested_batches():
    function = lambda params, e: log_likelihood(params, (e["in"]["x"], e["y"]))
    batch = {"in": {"x": X, "unused": None}, "y": Y}
    assert_close(ot.fisher_information(function, PARAMS, batch), reference())


def test_a_stream_is_read_lazily_in_constant_memory():
    params, alive = jnp.ones(1000), []

    def stream():
        for _ in range(8):
            jax.block_until_ready(jax.live_arrays())
            big = [x for x in jax.live_arrays() if x.size >= params.size]
            alive.append(sum(x.nbytes for x in big))
            yield np.ones((2, 1), np.float32)

    before = sum(x.nbytes for x in jax.live_arrays() if x.size >= params.size)
    ot.fisher_information(lambda w, x: jnp.sum(w * x), params, stream())
    assert len(alive) == 8
    assert alive == [before + params.nbytes] * 8


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_a_ragged_last_batch_costs_one_more_trace(microbatch_size):
    traces = []

    def counted(params, example):
        traces.append(1)
        return log_likelihood(params, example)

    run = lambda stream: ot.fisher_information(
        counted, PARAMS, stream, microbatch_size=microbatch_size
    )
    run([(X[:4], Y[:4])] * 5)
    assert len(traces) == 1
    run([(X[:4], Y[:4])] * 5 + [(X[:2], Y[:2])])
    assert len(traces) == 3


def test_progress_changes_nothing(capsys):
    got = ot.fisher_information(log_likelihood, PARAMS, batches(4, 8), progress=True)
    assert_close(got, reference())
    assert "Fisher information" in capsys.readouterr().out


# Layouts of parameters


def test_linen_and_nnx_agree():
    graph, state = nnx.split(NnxNet())
    x = values(5, 6)
    plain = lambda state: {
        "layer": {name: state["layer"][name][...] for name in ("kernel", "bias")},
        "scale": state["scale"][...],
    }
    apply = lambda params, x: jnp.asarray(LinenNet().apply({"params": params}, x))
    from_nnx = ot.fisher_information(
        lambda state, x: -jnp.square(nnx.merge(graph, state)(x)).sum(), state, x
    )
    from_linen = ot.fisher_information(
        lambda params, x: -jnp.square(apply(params, x)).sum(), plain(state), x
    )
    assert jax.tree.structure(linen_params()) == jax.tree.structure(from_linen)
    assert jax.tree.structure(from_nnx) == jax.tree.structure(state)
    assert_close(plain(from_nnx), from_linen)


@pytest.mark.parametrize("node", [Pair, PairNode])
def test_other_containers(node):
    function = lambda params, e: log_likelihood({"w": params.w, "b": params.b}, e)
    got = ot.fisher_information(function, node(**PARAMS), (X, Y))
    assert type(got) is node
    assert_close({"w": got.w, "b": got.b}, reference())


def test_where_leaves_holes_and_differentiates_the_rest_alone():
    @jax.custom_vjp
    def forbidden(x):
        return x

    def fail(*_):
        raise AssertionError("differentiated")

    forbidden.defvjp(lambda x: (x, None), fail)
    function = lambda params, e: log_likelihood(
        {"w": params["w"], "b": forbidden(params["b"])}, e
    )
    params = {**PARAMS, "ids": jnp.arange(3), "none": None, "out": optax.MaskedNode()}
    got = ot.fisher_information(function, params, (X, Y), where="^w$")
    assert got["b"] is got["ids"] is got["none"] is None
    assert got["out"] == optax.MaskedNode()
    assert_close(got["w"], reference()["w"])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_parameters_score_in_float32(dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    function = lambda params, e: log_likelihood(params, (e[0].astype(dtype), e[1]))
    assert_close(ot.fisher_information(function, params, (X, Y)), reference(), rtol=0.1)
    seen = ot.fisher_information(lambda w, x: w * x, dtype(1), jnp.array([3e-4], dtype))
    # Its square underflows in float16.
    assert float(seen) == float(jnp.float32(dtype(3e-4))) ** 2


def test_wide_parameters_score_in_float32():
    with jax.enable_x64(True):
        params = {name: jnp.asarray(p, jnp.float64) for name, p in PARAMS.items()}
        batch = X.astype(np.float64), Y
        assert_close(ot.fisher_information(log_likelihood, params, batch), reference())
        got = ot.fisher_information(
            log_probabilities, params, batch, labels="sampled", key=0, per="batch"
        )
        assert got["w"].dtype == jnp.float32


# Transformations and devices


def test_works_under_jit():
    run = lambda params, batch: ot.fisher_information(
        log_likelihood, params, batch, microbatch_size=3
    )
    assert_close(jax.jit(run)(PARAMS, (X, Y)), reference())
    bad = jax.jit(lambda x: ot.fisher_information(jnp.multiply, x, jnp.ones(1)))
    assert float(bad(jnp.float32(2))) == 1


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("microbatch_size", [None, 8])
@pytest.mark.parametrize("per", ["example", "batch"])
def test_sharded_batches(axis_type, microbatch_size, per):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    x, y = values(16, FEATURES), np.arange(16, dtype=np.int32) % CLASSES
    run = lambda params, batch: ot.fisher_information(
        log_likelihood, params, batch, per=per, microbatch_size=microbatch_size
    )
    want = run(PARAMS, (x, y))
    with jax.set_mesh(mesh):
        batch = jax.device_put((x, y), NamedSharding(mesh, P("data")))
        params = jax.device_put(PARAMS, NamedSharding(mesh, P()))
        assert_close(jax.device_get(run(params, [batch])), want)
