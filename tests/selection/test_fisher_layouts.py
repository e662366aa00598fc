"""Fisher information of every kind of stream, parameter tree and sharding."""

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
from tests.selection.fisher_model import (
    CLASSES,
    FEATURES,
    PARAMS,
    X,
    Y,
    assert_close,
    batches,
    log_likelihood,
    log_probabilities,
    reference,
    values,
)

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


def test_scores_are_sharded_like_their_parameters():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, P("model"))
    weight = jax.device_put(jnp.ones((16, FEATURES)), rows)
    function = lambda weight, x: -jnp.square(weight @ x).sum()
    got = ot.fisher_information(function, weight, [values(4, FEATURES)] * 2)
    assert got.sharding.is_equivalent_to(rows, 2)
