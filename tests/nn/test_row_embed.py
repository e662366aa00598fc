"""NNX: RowEmbed is Embed, and its row-sparse gradient is the dense one."""

import inspect
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot
from tests.nn.tables import assert_close, dense, each_kind, twice

BOTH = nnx.Embed, ot.nn.RowEmbed
IDS = jnp.array([0, 3, 3, 1])


class Net(nnx.Module):
    """Two look-ups in one table, with dropout, batch statistics and a dense layer."""

    def __init__(self, embed: Any):
        rngs = nnx.Rngs(0)
        self.embed = embed(7, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.embed(ids) * self.embed(6 - ids)
        return self.out(self.norm(self.dropout(x)))


def _pure(state: Any) -> Any:
    return nnx.to_pure_dict(state)


def _rows(grads: Any) -> Any:
    return dense(_pure(grads))


def _pair(*args: Any, **kind: Any) -> list[Any]:
    return [embed(*args, rngs=nnx.Rngs(0), **kind) for embed in BOTH]


def _assert_the_same_gradient(
    loss: Any, models: list[Any], *args: Any, rtol: float = 1e-5
) -> Any:
    """Compares values and gradients under jit, and gives the row-sparse ones."""

    @nnx.jit
    def both(old: Any, new: Any, *args: Any) -> Any:
        want = nnx.value_and_grad(loss)(old, *args)
        return want, ot.nn.row_value_and_grad(loss)(new, *args)

    (value, grads), (got, rows) = both(*models, *args)
    assert_close(got, value)
    assert_close(_rows(rows), _pure(grads), rtol=rtol)
    return rows


@pytest.mark.parametrize(
    ("kind", "num_rows"),
    [({}, 1), ({}, 5), ({"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, 5)],
)
def test_outside_it_is_embed(kind: Any, num_rows: int) -> None:
    ids = jnp.array([[0, 4, 4], [-1, 5, 2]])  # 5 is out of range
    models = old, new = _pair(num_rows, 4, **kind)
    assert_close(new(ids), old(ids), rtol=0)
    query = jnp.ones((2, 4))
    np.testing.assert_array_equal(new.attend(query), old.attend(query))
    known = (ids < num_rows)[..., None] | (num_rows == 1)
    loss = lambda model: jnp.where(known, model(ids), 0).astype(jnp.float32).sum()
    grads = nnx.jit(lambda models: [nnx.grad(loss)(model) for model in models])(models)
    assert_close(*map(_pure, grads), rtol=0)
    _assert_the_same_gradient(loss, models)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_the_gradient_is_the_dense_one(shape: tuple[int, ...]) -> None:
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 4, shape), jnp.int32)
    rows = _assert_the_same_gradient(twice, _pair(5, 4), ids)
    assert isinstance(rows, nnx.State)
    assert isinstance(rows["embedding"], nnx.Param)
    assert rows["embedding"].get_value().values.shape == (2 * ids.size, 4)


@each_kind
def test_dtypes(kind: Any) -> None:
    _assert_the_same_gradient(twice, _pair(5, 4, **kind), IDS, rtol=0.02)


def test_eager_calls() -> None:
    model = ot.nn.RowEmbed(5, 4, rngs=nnx.Rngs(0))
    gradient = ot.nn.row_value_and_grad(twice)
    assert_close(
        _rows(gradient(model, IDS)[1]), _rows(nnx.jit(gradient)(model, IDS)[1])
    )


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint32])
def test_narrow_and_unsigned_ids(dtype: Any) -> None:
    ids = jnp.array([0, 127, 127], dtype)
    loss = lambda model, ids: jnp.square(model(ids)).sum()
    _assert_the_same_gradient(loss, _pair(300, 2), ids)


class Shared(nnx.Module):
    """A module in two places, a table in two modules, an array in two tables."""

    def __init__(self, embed: Any):
        rngs = nnx.Rngs(0)
        self.z = embed(5, 2, rngs=rngs)
        self.layers = nnx.List([self.z, embed(5, 2, rngs=rngs), embed(3, 2, rngs=rngs)])
        self.layers[1].embedding = self.z.embedding
        self.twin = embed(5, 2, rngs=rngs)
        self.twin.embedding.set_value(self.z.embedding.get_value())

    def __call__(self, ids: jax.Array) -> jax.Array:
        first, second = self.z(ids) * self.layers[0](ids + 1), self.layers[1](ids)
        return first + second * self.twin(ids + 2) + self.twin(ids + 2)


def test_shared_tables_add_up_and_unused_ones_get_no_rows() -> None:
    loss = lambda model, ids: jnp.square(model(ids)).sum()
    models = [Shared(embed) for embed in BOTH]
    rows = _assert_the_same_gradient(loss, models, jnp.array([0, 2, 2]))
    assert rows["layers"][2]["embedding"].get_value().values.shape == (0, 2)


def test_other_variables_change_once_and_aux_comes_back() -> None:
    def loss(model: Net, ids: jax.Array, rngs: nnx.Rngs) -> Any:
        out = model(ids) + rngs.normal((4, 2))
        return jnp.square(out).sum(), {"model": model, "out": out}

    def run(method: Any, embed: Any) -> Any:
        model, rngs, ids = Net(embed), nnx.Rngs(5), jnp.array([1, 2, 2, 6])
        (value, aux), grads = nnx.jit(method(loss, has_aux=True))(model, ids, rngs)
        assert aux["model"] is model
        kinds = nnx.Any(nnx.RngCount, nnx.BatchStat, nnx.Param)
        states = _pure(nnx.state(model, kinds)), _pure(nnx.state(rngs, nnx.RngCount))
        return value, aux["out"], states, _rows(grads)

    want = run(nnx.value_and_grad, nnx.Embed)
    assert int(want[2][1]["default"]["count"]) == 1
    assert want[2][0]["norm"]["mean"].any()
    assert_close(run(ot.nn.row_value_and_grad, ot.nn.RowEmbed), want)


def test_padding_reads_what_the_docstring_says() -> None:
    embed, ids = ot.nn.RowEmbed(3, 2, rngs=nnx.Rngs(0)), jnp.array([1, 3, 3, 1])

    def loss(model: Any) -> Any:
        rows = model(ids)
        return jnp.where(ids[:, None] < 3, rows, 0).sum(), rows

    gradient = nnx.jit(ot.nn.row_value_and_grad(loss, has_aux=True))
    (value, rows), grads = gradient(embed)
    assert jnp.isnan(rows).all(1).tolist() == [False, True, True, False]
    assert jnp.isfinite(value)
    rows = grads["embedding"].get_value()
    assert rows.indices.tolist() == [1, 3, 3, 3]
    assert rows.values.tolist() == [[2, 2], [0, 0], [0, 0], [0, 0]]


# A lookup needs `out_sharding` where axes are Explicit; older versions of Flax lack it.
explicit = pytest.param(
    AxisType.Explicit,
    marks=pytest.mark.skipif(
        "out_sharding" not in inspect.signature(nnx.Embed.__call__).parameters,
        reason="nnx.Embed takes no out_sharding",
    ),
)


@pytest.mark.parametrize("kind", [AxisType.Auto, explicit])
@pytest.mark.parametrize("split", [P(None, None), P("data", None)])
def test_on_a_mesh(kind: AxisType, split: P) -> None:
    mesh = jax.make_mesh((2,), ("data",), (kind,), devices=jax.devices()[:2])
    options = {"out_sharding": P("data", None)} if kind == AxisType.Explicit else {}
    loss = lambda model, ids: jnp.square(model(ids, **options)).sum()
    with jax.set_mesh(mesh):
        models = _pair(8, 4)
        for model in models:
            table = model.embedding.get_value()
            sharding = NamedSharding(mesh, split)
            model.embedding.set_value(jax.device_put(table, sharding))
        ids = jnp.array([1, 2, 2, 7])
        ids = jax.device_put(ids, NamedSharding(mesh, P("data")))
        grads = nnx.jit(ot.nn.row_value_and_grad(loss))(models[1], ids)[1]
        want = nnx.jit(nnx.grad(loss))(models[0], ids)
    assert_close(_rows(jax.device_get(grads)), _pure(jax.device_get(want)))


HIDDEN: dict[str, Any] = {
    "jit": nnx.jit(lambda model, ids: model(ids)),
    "remat": nnx.remat(lambda model, ids: model(ids)),
    "vmap": nnx.vmap(lambda model, ids: model(ids), in_axes=(None, 0)),
    "scan": nnx.scan(lambda model, ids: model(ids), in_axes=(None, 0), out_axes=0),
    "jax.checkpoint": lambda model, ids: jax.checkpoint(lambda ids: model(ids))(ids),
    "jax.jit over ids from outside": lambda model, ids: jax.jit(lambda: model(ids))(),
    "attend": lambda model, ids: model.attend(model(ids)),
    "penalty": lambda model, ids: model(ids).sum() + model.embedding[...],
}


@pytest.mark.parametrize("read", HIDDEN.values(), ids=list(HIDDEN))
def test_what_cannot_be_had_by_rows_is_an_error(read: Any) -> None:
    model, ids = ot.nn.RowEmbed(5, 2, rngs=nnx.Rngs(0)), jnp.array([1, 2])
    table = model.embedding.get_value()
    loss = lambda model: jnp.square(read(model, ids)).sum()
    with pytest.raises(ValueError, match=r"look-up .*inside jit, remat, scan"):
        ot.nn.row_value_and_grad(loss)(model)
    assert model.embedding.get_value() is table


def test_transformations_elsewhere_and_uses_without_a_gradient_are_fine() -> None:
    teacher = ot.nn.RowEmbed(7, 4, rngs=nnx.Rngs(9))

    def loss(model: Net, teacher: Any, name: str) -> Any:
        assert name == "any object"
        ids = jnp.array([1, 2])
        x = nnx.remat(lambda layer, x: jnp.sin(layer(x)))(model.out, model.embed(ids))
        scores = jax.lax.stop_gradient(model.embed.attend(jnp.ones(4)))
        x = x + teacher(ids)[:, :2] + scores.sum()
        return jnp.square(x).sum(), jnp.linalg.norm(model.embed.embedding[...])

    def run(method: Any, embed: Any) -> Any:
        step = lambda model, teacher: method(loss, has_aux=True)(
            model, teacher, "any object"
        )
        value, grads = nnx.jit(step)(Net(embed), teacher)
        return value, _rows(grads)

    want = run(nnx.value_and_grad, nnx.Embed)
    assert_close(run(ot.nn.row_value_and_grad, ot.nn.RowEmbed), want)


def test_a_table_that_the_loss_writes_stays_written() -> None:
    def loss(model: Any) -> jax.Array:
        value = model(jnp.array([1])).sum()
        model.embedding.set_value(jnp.zeros((5, 2)))
        return value

    model = ot.nn.RowEmbed(5, 2, rngs=nnx.Rngs(0))
    ot.nn.row_value_and_grad(loss)(model)
    assert not model.embedding.get_value().any()


def test_bad_calls_are_errors() -> None:
    old, new = _pair(3, 2)
    gradient = ot.nn.row_value_and_grad(lambda model, ids: model(ids).sum())
    with pytest.raises(ValueError, match="needs a model with a RowEmbed"):
        gradient(old, jnp.array([1]))
    for call in new, lambda ids: gradient(new, ids):
        with pytest.raises(ValueError, match=r"integer"):
            call(jnp.ones(2))
    with pytest.raises(TypeError, match=r"model must be one nnx.Module, got .*list"):
        gradient([new, new], jnp.array([1]))
    with pytest.raises(TypeError, match="loss_fn must be callable, got 3"):
        ot.nn.row_value_and_grad(cast(Any, 3))
    with pytest.raises(TypeError, match="has_aux must be True or False"):
        ot.nn.row_value_and_grad(gradient, has_aux=cast(Any, "yes"))
    with pytest.raises(TypeError, match=r"must give a pair \(value, aux\)"):
        ot.nn.row_value_and_grad(lambda model, ids: model(ids).sum(), has_aux=True)(
            new, jnp.array([1])
        )


@pytest.mark.parametrize("compiled", [False, True])
def test_ids_out_of_range_have_no_gradient(compiled: bool) -> None:
    model = ot.nn.RowEmbed(5, 2, rngs=nnx.Rngs(0))

    def gradient(model: Any, ids: jax.Array) -> Any:
        loss = lambda model, *, ids: jnp.where(ids[:, None] < 5, model(ids), 0).sum()
        return ot.nn.row_value_and_grad(loss)(model, ids=ids)[1]

    run = nnx.jit(gradient) if compiled else gradient
    grads = run(model, jnp.array([50, 1, -1, -9]))
    table = grads["embedding"].get_value().to_dense()
    assert table[:, 0].tolist() == [0, 1, 0, 0, 1]
