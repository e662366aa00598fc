"""Linen: RowEmbed is Embed, and its row-sparse gradient is the dense one."""

import contextlib
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optaxtricks as ot
from tests.nn.tables import assert_close, dense, each_kind, twice

BOTH = nn.Embed, ot.nn.linen.RowEmbed
IDS = jnp.array([1, 2, 2, 3])


class Net(nn.Module):
    """Two look-ups in one table, with dropout, batch statistics and a dense layer."""

    embed: Any

    def setup(self) -> None:
        self.table = self.embed(7, 4)
        self.dropout = nn.Dropout(0.25, deterministic=False)
        self.norm = nn.BatchNorm(use_running_average=False)
        self.out = nn.Dense(2)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.table(ids) * self.table(6 - ids)
        return self.out(self.norm(self.dropout(x)))

    def only_look_up(self, ids: jax.Array) -> jax.Array:
        return self.table(ids)


def _params(model: nn.Module, ids: Any = IDS) -> Any:
    return model.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, ids)


def _dense_method(model: nn.Module, loss: Any, **options: Any) -> Any:
    """What `row_value_and_grad` does, as one would write it without it."""

    def of_params(params: Any, *args: Any) -> Any:
        def apply(*inputs: Any, variables: Any = None, **kwargs: Any) -> Any:
            return model.apply(
                {**(variables or {}), "params": params}, *inputs, **kwargs
            )

        return loss(apply, *args)

    return jax.value_and_grad(of_params, **options)


def _assert_the_same_gradient(
    loss: Any, models: Any, params: Any, *args: Any, rtol: float = 1e-5
) -> Any:
    """Compares values and gradients under jit, and gives the row-sparse ones."""

    @jax.jit
    def both(params: Any, *args: Any) -> Any:
        want = _dense_method(models[0], loss)(params, *args)
        return want, ot.nn.linen.row_value_and_grad(models[1], loss)(params, *args)

    (value, grads), (got, rows) = both(params, *args)
    assert_close(got, value)
    assert_close(dense(rows), grads, rtol=rtol)
    return rows


@pytest.mark.parametrize(
    ("kind", "num_rows"),
    [({}, 1), ({}, 5), ({"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}, 5)],
)
def test_outside_it_is_embed(kind: Any, num_rows: int) -> None:
    ids = jnp.array([[0, 4, 4], [-1, 5, 2]])  # 5 is out of range
    models = old, new = [embed(num_rows, 4, **kind) for embed in BOTH]
    params = _params(new, ids)["params"]
    assert_close(params, _params(old, ids)["params"], rtol=0)
    outputs = [model.apply({"params": params}, ids) for model in models]
    assert_close(*outputs, rtol=0)
    known = (ids < num_rows)[..., None] | (num_rows == 1)
    loss = lambda apply: jnp.where(known, apply(ids), 0).astype(jnp.float32).sum()
    grad = lambda model: jax.jit(_dense_method(model, loss))(params)[1]
    assert_close(*map(grad, models), rtol=0)
    _assert_the_same_gradient(loss, models, params)


@pytest.mark.parametrize("shape", [(), (2, 1, 3), (2, 0)])
def test_the_gradient_is_the_dense_one(shape: tuple[int, ...]) -> None:
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 4, shape), jnp.int32)
    models = [embed(5, 4) for embed in BOTH]
    params = _params(models[0])["params"]
    rows = _assert_the_same_gradient(twice, models, params, ids)["embedding"]
    assert isinstance(rows, ot.RowSparse)
    assert rows.values.shape == (2 * ids.size, 4)


@each_kind
def test_dtypes(kind: Any) -> None:
    models = [embed(5, 4, **kind) for embed in BOTH]
    params = _params(models[0])["params"]
    _assert_the_same_gradient(twice, models, params, IDS, rtol=0.02)


def test_eager_calls() -> None:
    model = ot.nn.linen.RowEmbed(5, 4)
    gradient, params = ot.nn.linen.row_value_and_grad(model, twice), _params(model)
    eager, fast = (
        call(params["params"], IDS) for call in (gradient, jax.jit(gradient))
    )
    assert_close(dense(eager), dense(fast))


def test_collections_random_keys_and_methods_pass_as_through_apply() -> None:
    def loss(apply: Any, stats: Any, key: jax.Array) -> Any:
        out, changed = apply(
            IDS,
            variables={"batch_stats": stats},
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        again = apply(IDS, method="only_look_up")
        return jnp.square(out).sum() + jnp.sin(again).sum(), (out, changed)

    models = [Net(embed) for embed in BOTH]
    variables = _params(models[0])
    args = variables["params"], variables["batch_stats"], jax.random.key(2)
    want = jax.jit(_dense_method(models[0], loss, has_aux=True))(*args)
    method = ot.nn.linen.row_value_and_grad(models[1], loss, has_aux=True)
    (value, aux), grads = jax.jit(method)(*args)
    assert_close(((value, aux), dense(grads)), want)
    assert aux[1]["batch_stats"]["norm"]["mean"].any()


class Nested(nn.Module):
    """Tables at several depths, one of them called twice."""

    embed: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        shared = self.embed(5, 2, name="b/c")
        x = nn.Sequential([shared, nn.remat(nn.Dense)(2), jnp.sin])(ids)
        return x + shared(ids + 1) + self.embed(7, 2)(ids)


def test_nested_tables_and_remat_elsewhere() -> None:
    models = [Nested(embed) for embed in BOTH]
    params = _params(models[1])["params"]
    assert set(params) == {"b/c", "RowEmbed_0", "CheckpointDense_0"}
    # Both kinds of Embed have to agree on names, which follow the class.
    models[0] = Nested(type("RowEmbed", (nn.Embed,), {}))
    params = flax.core.freeze(params)
    loss = lambda apply: jnp.square(apply(jnp.array([0, 2, 2]))).sum()
    _assert_the_same_gradient(loss, models, params)


@pytest.mark.parametrize("meshed", [False, True])
def test_boxes_stay(meshed: bool) -> None:
    init = nn.with_partitioning(nn.initializers.normal(), ("rows", None))
    models = [embed(8, 2, embedding_init=init) for embed in BOTH]
    params = _params(models[0])["params"]
    loss = lambda apply: jnp.square(apply(IDS)).sum()
    kinds, devices = (jax.sharding.AxisType.Auto,), jax.devices()[:2]
    mesh = jax.make_mesh((2,), ("rows",), kinds, devices=devices)
    with jax.set_mesh(mesh) if meshed else contextlib.nullcontext():
        rows = _assert_the_same_gradient(loss, models, params)
    assert isinstance(rows["embedding"], nn.Partitioned)
    assert isinstance(rows["embedding"].value, ot.RowSparse)


def test_another_model_in_the_loss_reads_as_usual() -> None:
    models = [embed(5, 4) for embed in BOTH]
    params = _params(models[0])["params"]

    def loss(apply: Any, other: Any) -> jax.Array:
        taught: Any = models[1].apply({"params": other}, IDS)
        return jnp.square(apply(IDS) - jnp.sin(taught)).sum()

    _assert_the_same_gradient(loss, models, params, params)


class Hidden(nn.Module):
    """A look-up that cannot be had by rows."""

    kind: str

    @nn.compact
    def __call__(self, ids: jax.Array) -> Any:
        embed = ot.nn.linen.RowEmbed
        if self.kind == "map_variables":
            double = lambda tree: jax.tree.map(lambda x: 2 * x, tree)
            embed = nn.map_variables(embed, "params", double, init=True)
        if self.kind in ("remat", "jit"):
            embed = getattr(nn, self.kind)(embed)
        if self.kind == "vmap":
            embed = nn.vmap(embed, variable_axes={"params": 0}, split_rngs={})
        table = embed(5, 2, embedding_init=nn.initializers.ones, name="embed")
        if self.kind == "attend":
            return table.attend(table(ids))
        if self.kind == "jax.checkpoint":
            return jax.checkpoint(lambda: table(ids))()
        return table(ids)


@pytest.mark.parametrize(
    "kind", ["remat", "jit", "vmap", "map_variables", "attend", "jax.checkpoint"]
)
def test_what_cannot_be_had_by_rows_is_an_error(kind: str) -> None:
    shape = (4, 5, 2) if kind == "vmap" else (5, 2)
    params = {"embed": {"embedding": jnp.ones(shape)}}
    loss = lambda apply: jnp.square(apply(IDS)).sum()
    gradient = ot.nn.linen.row_value_and_grad(Hidden(kind), loss)
    # Linen itself refuses its modules inside JAX's transformations.
    errors = ValueError, flax.errors.JaxTransformError
    with pytest.raises(errors, match=r"look-up .*inside jit, remat, scan|cannot be mi"):
        gradient(params)


def test_bad_calls_are_errors() -> None:
    loss = lambda apply, ids: apply(ids).sum()
    old, new = (embed(5, 2) for embed in BOTH)
    params = _params(old)["params"]
    with pytest.raises(ValueError, match="needs a loss that calls a RowEmbed"):
        ot.nn.linen.row_value_and_grad(old, loss)(params, IDS)
    with pytest.raises(ValueError, match="integer"):
        ot.nn.linen.row_value_and_grad(new, loss)(params, jnp.ones(2))
    with pytest.raises(ValueError, match="integer"):
        new.apply({"params": params}, jnp.ones(2))
