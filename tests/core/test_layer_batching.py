"""Programs for one layer, run where layers lie, against `jax.vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optaxtricks._core.layer_batching import Group, LayerBatching, Place, Value
from tests.problems import values

pytestmark = pytest.mark.slow

LAYERS = 3
# A matrix, a vector and a number of each layer; a matrix that all layers share.
SHAPES = [(4, 5), (5,), ()]
SHARED = (4, 5)


@jax.custom_jvp
def _doubled(x):
    return 2 * x


_doubled.defjvp(lambda primals, tangents: (_doubled(*primals), 2 * tangents[0]))


def _jitted(m, v, s, w):
    rule = jax.jit(lambda m, s: (jnp.where(s > 0, m, 0.0 * m), m.shape[0] * s))
    return rule(m, s), rule(w, s), rule(w, w[0, 0]), rule(m * 2, s + 1)


def _branches(m, v, s, w):
    take = lambda m, w: (m + w, w)
    skip = lambda m, w: (w * 2, w)
    return jax.lax.cond(s > 0, take, skip, m, w), jax.lax.cond(
        w[0, 0] > 0, take, skip, m, w
    )


def _loops(m, v, s, w):
    step = lambda carry, row: ((carry[0] + row, carry[1] * s), carry[0])
    scanned = jax.lax.scan(step, (v, w), m)
    grow = lambda x: x * 2
    return scanned, jax.lax.while_loop(lambda x: x < 9, grow, jnp.abs(s) + 1)


PROGRAMS = {
    "elementwise": lambda m, v, s, w: (m + w, w - m, -m, jnp.exp(w), s * s, m * 2),
    "scalars": lambda m, v, s, w: (m * s, w * s, s + w[0, 0], jnp.where(s > 0, m, w)),
    "select_by_a_number": lambda m, v, s, w: (
        jax.lax.select(s > 0, m, w),
        jax.lax.select(s > 0, w, w + 1),
        jax.lax.select(w[0, 0] > 0, w, m),
        jax.lax.clamp(-jnp.abs(s), m, jnp.abs(s)),
    ),
    "broadcast": lambda m, v, s, w: (
        m + v[None],
        jnp.broadcast_to(v[:, None], (5, 4)),
        jnp.broadcast_to(s, (2, 2, 2)),
        m * m.sum(axis=0, keepdims=True),
        m / m.mean(axis=1, keepdims=True),
    ),
    "reductions": lambda m, v, s, w: (m.sum(), (m - w).max(axis=0), jnp.argmax(m)),
    "products": lambda m, v, s, w: (m @ w.T, w @ v, w.T @ m, jnp.vdot(v, v)),
    "shapes": lambda m, v, s, w: (m.reshape(-1), m.T, jnp.concatenate([m, w]), m[1:]),
    "index": lambda m, v, s, w: (
        jnp.sort(m, axis=0),
        w[jnp.argmax(v) % 4],
        jnp.take(m, jnp.array([2, 0]), axis=0, mode="clip"),
        jax.lax.dynamic_slice(v, (jnp.argmax(w) % 2,), (3,)),
        w.at[0].add(v),
    ),
    "many_results": lambda m, v, s, w: (jax.lax.top_k(m, 2), jnp.linalg.qr(m @ m.T)),
    "calls": _jitted,
    "branches": _branches,
    "loops": _loops,
    "derivatives": lambda m, v, s, w: (
        _doubled(m) + w,
        jax.checkpoint(lambda m, s: m * s)(m, s),
        jax.grad(lambda v: (w @ v).sum() * s)(v),
    ),
    "literals": lambda m, v, s, w: (1.0, jnp.zeros(3), m.shape[0] + w),
}


def _flat(program: Any) -> Any:
    return lambda *arguments: jax.tree.leaves(program(*arguments))


@pytest.mark.parametrize(
    "axis",
    [
        pytest.param(0, marks=pytest.mark.slow),
        1,
        pytest.param(2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_is_vmap_on_any_layer_axis(program: Any, axis: int) -> None:
    places = [Place(0, min(axis, len(shape))) for shape in SHAPES]
    arrays = [
        values((*shape[: at.axis], LAYERS, *shape[at.axis :]), jnp.float32, i)
        for i, (shape, at) in enumerate(zip(SHAPES, places, strict=True))
    ]
    shared = values(SHARED, jnp.float32, 9)
    want = jax.vmap(_flat(program), in_axes=(*[at.axis for at in places], None))(
        *arrays, shared
    )

    def run(*arrays: Any) -> list[jax.Array]:
        given = [*map(Value, arrays[:-1], places), Value(arrays[-1])]
        traced = jax.make_jaxpr(_flat(program))(*[value.one() for value in given])
        layers = LayerBatching([Group(LAYERS, axis, None)])
        return [layers.moved(x, Place(0, 0)) for x in layers.run(traced, given)]

    for way in (run, jax.jit(run)):
        for got, right in zip(way(*arrays, shared), want, strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)


def test_what_no_layer_enters_is_computed_once() -> None:
    layers = LayerBatching([Group(LAYERS, 0, None)])
    rule = lambda x, w: (w * 2, jax.jit(lambda x, w: (x, w + 1))(x, w))
    given = [Value(jnp.ones((LAYERS, 2)), Place(0, 0)), Value(jnp.ones(2))]
    traced = jax.make_jaxpr(_flat(rule))(*[value.one() for value in given])
    found = layers.run(traced, given)
    assert [value.at for value in found] == [None, Place(0, 0), None]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_array_is_transposed(axis: int) -> None:
    """Where `jax.vmap` moves the layer axis to the front and back again."""

    def rule(u: Any, s: Any) -> Any:
        noise = jax.lax.broadcasted_iota(jnp.float32, u.shape, 0) * s
        return jnp.where(noise > 3, u, jnp.zeros_like(u)) / (1 + jnp.square(u).sum())

    at, shape = Place(0, axis), [4, 5]
    shape.insert(axis, LAYERS)
    given = [Value(jnp.ones(shape), at), Value(jnp.ones(LAYERS), Place(0, 0))]
    traced = jax.make_jaxpr(rule)(*[value.one() for value in given])

    def run(u: Any, s: Any) -> Any:
        layers = LayerBatching([Group(LAYERS, axis, None)])
        found = layers.run(traced, [Value(u, at), Value(s, Place(0, 0))])
        return [layers.moved(value, at) for value in found]

    text = str(jax.make_jaxpr(run)(*[value.array for value in given]))
    assert "transpose" not in text
    usual = jax.vmap(rule, in_axes=(axis, 0), out_axes=axis)
    moves = "transpose" in str(jax.make_jaxpr(usual)(*[v.array for v in given]))
    assert moves == (axis > 0)


TWO = [Value(jnp.arange(2.0), Place(0, 0)), Value(jnp.arange(3.0), Place(1, 0))]


def _run_two(rule: Any) -> list[Value]:
    layers = LayerBatching([Group(2, 0, None), Group(3, 0, None)])
    traced = jax.make_jaxpr(_flat(rule))(*[value.one() for value in TWO])
    return layers.run(traced, TWO)


def test_stacks_of_two_lengths_pass_one_operation_side_by_side() -> None:
    """As through the branch that an accumulation takes."""
    branch = lambda x, y: (x * 2, y + 1, 7.0)
    found = _run_two(lambda x, y: jax.lax.cond(jnp.bool_(True), branch, branch, x, y))
    assert [value.at for value in found] == [Place(0, 0), Place(1, 0), None]
    np.testing.assert_array_equal(found[0].array, [0, 2])
    np.testing.assert_array_equal(found[1].array, [1, 2, 3])


def test_stacks_of_two_lengths_do_not_meet() -> None:
    with pytest.raises(ValueError, match="stacks of different lengths"):
        _run_two(lambda x, y: x + y)
