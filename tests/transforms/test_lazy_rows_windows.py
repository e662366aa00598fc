"""Lazy rows around what accumulates: a row moves if any call of a window touched it."""

from collections import OrderedDict
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optaxtricks
from tests.problems import applied, assert_same, layout, values

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)

pytestmark = pytest.mark.usefixtures("standard_promotion")
ROWS, WIDTH, K, WINDOWS = 16, 4, 4, 3
RATE = optax.linear_schedule(0.1, 0.05, 2)


def adam():
    return optax.adamw(RATE, weight_decay=0.5)


def tiger(**options):
    return ot.tiger(RATE, weight_decay=0.5, embeddings="emb", **options)


def mixed(**options):
    return ot.mixed_sign(RATE, embeddings="emb", sign="tiger", **options)


def multi(tx):
    return optax.MultiSteps(tx, K).gradient_transformation()


def at_end(tx):
    """The last call's gradient decides: see `means`."""
    return ot.at_window_end(tx, accumulate_steps=K)


def apart(one, two):
    labels = ot.label_by_path({"emb": "one"}, default="two")
    return optax.partition({"one": one, "two": two}, labels)


# Each with windows of K calls, and without.
INNER: dict[str, Any] = {
    "tiger": (tiger(accumulate_steps=K), tiger()),
    "mixed_sign": (mixed(accumulate_steps=K), mixed()),
    "MultiSteps": (optax.MultiSteps(adam(), K), adam()),
    "its transformation": (multi(adam()), adam()),
    "of lion": (multi(ot.lion(RATE)), ot.lion(RATE)),
    "partition": (apart(multi(adam()), tiger(accumulate_steps=K)), None),
}
INNER["partition"] = INNER["partition"][0], apart(adam(), tiger())
RESTS = {name: pair for name, pair in INNER.items() if name != "tiger"}
RESTS["at_window_end"] = at_end(adam()), adam()
each_inner = pytest.mark.parametrize("pair", INNER.values(), ids=INNER)


def params():
    return {"emb": values((ROWS, WIDTH), jnp.float32, 1), "w": jnp.ones((2, 3))}


def calls(seed=0, windows=WINDOWS, zipf=1.5):
    """Gradients of rows that a Zipf law looks up, and the rows."""
    rng = np.random.default_rng(seed)
    grads, rows = [], []
    for _ in range(windows * K):
        ids = np.minimum(rng.zipf(zipf, 3) - 1, ROWS)
        rows.append(np.unique(ids[ids < ROWS]))
        emb = np.zeros((ROWS, WIDTH), np.float32)
        emb[rows[-1]] = rng.normal(size=(len(rows[-1]), WIDTH))
        w = rng.normal(size=(2, 3)).astype(np.float32)
        grads.append({"emb": jnp.asarray(emb), "w": jnp.asarray(w)})
    return grads, rows


def means(grads, rows):
    """The same by windows: mean gradients, and the rows of all calls."""
    starts = range(0, len(grads), K)
    mean = lambda *leaves: sum(leaves) / K
    return [jax.tree.map(mean, *grads[i : i + K]) for i in starts], [
        np.unique(np.concatenate(rows[i : i + K])) for i in starts
    ]


def path(tx, start, grads, rows=None, padded=3 * K):
    """The parameters after every step, and the last state."""
    state, out, at = tx.init(start), [], start
    update = jax.jit(tx.update)
    for i, grad in enumerate(grads):
        extra = {}
        if rows is not None:
            ids = np.full(padded, ROWS)
            ids[: len(rows[i])] = rows[i]
            extra = {"active_rows": {"emb": jnp.asarray(ids)}}
        updates, state = update(grad, state, at, **extra)
        at = applied(at, updates)
        out.append(at)
    return out, state


def check(pair, moments, grads, rows, given):
    """A run over calls is the run without windows over means, where those end."""
    inner, plain = pair
    lazy = lambda tx: ot.lazy_rows(tx, tables="emb", moments=moments)
    start = params()
    got, state = path(lazy(inner), start, grads, rows if given else None)
    want, _ = path(lazy(plain), start, *means(grads, rows))
    for call, after in enumerate(got):
        before = start if call < K - 1 else want[(call + 1) // K - 1]
        assert_same(after, before, ulps=32)
    return state


@pytest.mark.parametrize("given", [False, True])
@each_inner
def test_a_window_is_one_step_on_its_mean_and_all_its_rows(pair, given):
    state = check(pair, "decay", *calls(), given)
    assert isinstance(state, ot.LazyRowsState)
    assert not state.touched[0].any()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("pair", RESTS.values(), ids=RESTS)
def test_frozen_rows_rest_for_whole_windows(pair, given):
    grads, rows = calls(seed=1)
    if isinstance(pair[0].init(params()), ot.AtWindowEndState):
        mean, _ = means(grads, rows)
        # The last call's gradient, with only its own rows touched by the zero test.
        grads = [mean[i // K] for i in range(len(grads))]
        if not given:
            rows = [np.flatnonzero(np.asarray(g["emb"]).any(axis=1)) for g in grads]
    check(pair, "freeze", grads, rows, given)


def test_a_gradient_of_rows_that_are_not_active_is_lost_with_its_window():
    """What MultiSteps summed of a resting row does not come back later."""
    grads = [{"emb": jnp.ones((ROWS, WIDTH)), "w": jnp.ones((2, 3))}] * (2 * K)
    rows = [np.asarray([3])] * K + [np.asarray([3, 5])] * K
    check((multi(adam()), adam()), "freeze", grads, rows, given=True)


def test_sums_that_apply_every_hands_on():
    inner = optax.chain(optax.apply_every(K), optax.sgd(0.1))
    for moments in "decay", "freeze":
        grads, rows = calls(seed=2)
        lazy = ot.lazy_rows(inner, tables="emb", moments=moments)
        got, _ = path(lazy, params(), grads)
        want, _ = path(optax.sgd(0.1 * K), params(), means(grads, rows)[0])
        assert_same(got[K - 1 :: K], want, ulps=32)
        assert_same(got[K - 2], params())


@pytest.mark.parametrize("moments", ["decay", "freeze"])
def test_a_call_that_multi_steps_skips_touches_nothing(moments):
    inner = optax.MultiSteps(adam(), 2, should_skip_update_fn=optax.skip_not_finite)
    lazy = ot.lazy_rows(inner, tables="emb", moments=moments)
    start, state = params(), None
    state = lazy.init(start)
    moved: Any = None
    for row, value in (7, np.nan), (0, 1.0), (5, np.nan), (9, np.inf), (2, 1.0):
        emb = jnp.zeros((ROWS, WIDTH)).at[row].set(value)
        grads = {"emb": emb, "w": jnp.ones((2, 3))}
        updates, state = lazy.update(grads, state, start)
        moved = np.flatnonzero(np.asarray(updates["emb"]).any(axis=1))
    assert moved.tolist() == [0, 2]
    assert not state.touched[0].any()


def test_the_row_of_a_window_of_one_call():
    tx = ot.lazy_rows(optax.MultiSteps(adam(), 1), tables="emb")
    grads, _ = calls()
    got, state = path(tx, params(), grads)
    want, _ = path(ot.lazy_rows(adam(), tables="emb"), params(), grads)
    assert_same(got, want, ulps=4)
    assert isinstance(state, ot.LazyRowsState)


def test_nested_windows_end_together():
    grads, rows = calls(windows=2)
    halves = optax.MultiSteps(tiger(accumulate_steps=2), 2)
    lazy = ot.lazy_rows(halves, tables="emb")
    got, _ = path(lazy, params(), grads)
    want, _ = path(ot.lazy_rows(tiger(), tables="emb"), params(), *means(grads, rows))
    assert_same(got[K - 1 :: K], want, ulps=32)


@pytest.mark.parametrize("moments", ["decay", "freeze"])
@pytest.mark.parametrize("other", [tiger(accumulate_steps=K), at_end(optax.sgd(0.1))])
def test_a_table_goes_by_no_window_of_other_leaves(other, moments):
    lazy = ot.lazy_rows(apart(adam(), other), tables="emb", moments=moments)
    alone = ot.lazy_rows(adam(), tables="emb", moments=moments)
    grads, _ = calls(windows=2)
    got, _ = path(lazy, params(), grads)
    tables = [{"emb": grad["emb"]} for grad in grads]
    want, _ = path(alone, {"emb": params()["emb"]}, tables)
    assert_same([at["emb"] for at in got], [at["emb"] for at in want], ulps=4)


def test_tables_of_windows_of_their_own():
    """In containers of another order than those that init saw, too."""
    grads, _ = calls(windows=3)
    both = [
        {"emb": one["emb"], "tab": 2 * other["emb"]}
        for one, other in zip(grads, reversed(grads), strict=True)
    ]
    start = {"emb": params()["emb"], "tab": values((ROWS, WIDTH), jnp.float32, 7)}
    inner = {name: optax.MultiSteps(adam(), k) for name, k in [("emb", 2), ("tab", 3)]}
    of_each: dict[Any, Any] = {
        name: tx.gradient_transformation() for name, tx in inner.items()
    }
    labels = {"emb": "emb", "tab": "tab"}
    lazy = ot.lazy_rows(optax.partition(of_each, lambda tree: labels), tables="")
    got, _ = path(lazy, start, both)
    for name, tx in inner.items():
        alone = ot.lazy_rows(tx, tables="")
        want, _ = path(alone, {name: start[name]}, [{name: g[name]} for g in both])
        assert_same([at[name] for at in got], [at[name] for at in want], ulps=4)


def test_touched_rows_are_held_by_path():
    tx = ot.lazy_rows(ot.scale_by_tiger(accumulate_steps=K), tables="")
    tree = {"emb": jnp.ones((ROWS, 2)), "tab": jnp.ones((ROWS, 2))}
    backward = OrderedDict(reversed(tree.items()))
    grads = {"emb": tree["emb"].at[1:].set(0), "tab": tree["tab"].at[:-1].set(0)}
    want = tx.update(grads, tx.init(tree), tree)[1].touched
    assert_same(tx.update(grads, tx.init(backward), tree)[1].touched, want)
    later = tx.update(OrderedDict(reversed(grads.items())), tx.init(tree), tree)[1]
    assert_same(later.touched, want)


def test_what_accumulates_nothing_has_the_state_of_inner():
    for inner in adam(), tiger(), ot.at_window_end(adam(), accumulate_steps=1):
        want = layout(inner.init(params()))
        assert layout(ot.lazy_rows(inner, tables="emb").init(params())) == want


@each_inner
def test_the_state_in_a_scan_with_donation_and_from_eval_shape(pair):
    lazy, start = ot.lazy_rows(pair[0], tables="emb"), params()
    grads, _ = calls(windows=2)
    want, last = path(lazy, start, grads)
    shapes = jax.eval_shape(lazy.init, start)
    assert layout(lazy.init(start)) == layout(last)
    assert jax.tree.structure(shapes) == jax.tree.structure(last)

    def step(carry, grad):
        updates, state = lazy.update(grad, carry[1], carry[0])
        return (applied(carry[0], updates), state), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)
    (got, state), _ = jax.lax.scan(step, (start, lazy.init(start)), stacked)
    assert_same((got, state), (want[-1], last), ulps=32)
    donated = jax.jit(step, donate_argnums=0)
    carry = jax.tree.map(jnp.copy, (start, lazy.init(start)))
    for grad in grads:
        before, (carry, _) = carry, donated(carry, grad)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert_same(carry, (want[-1], last), ulps=32)


def test_a_restored_state_goes_on_inside_a_window():
    lazy, start = ot.lazy_rows(tiger(accumulate_steps=K), tables="emb"), params()
    grads, _ = calls(windows=2)
    want, last = path(lazy, start, grads)
    _, state = path(lazy, start, grads[: K + 2])
    assert state.touched[0].any()
    text = serialization.to_bytes(state)
    state = serialization.from_bytes(lazy.init(start), text)
    at = want[K + 1]
    for grad in grads[K + 2 :]:
        updates, state = jax.jit(lazy.update)(grad, state, at)
        at = applied(at, updates)
    assert_same((at, state), (want[-1], last))


def test_many_windows_side_by_side_under_vmap():
    lazy = ot.lazy_rows(tiger(accumulate_steps=K), tables="emb")
    runs = [calls(seed=seed, windows=1)[0] for seed in range(3)]
    want = [path(lazy, params(), grads) for grads in runs]
    stack = lambda *leaves: jnp.stack(leaves)
    at = jax.tree.map(stack, *[params()] * 3)
    state = jax.vmap(lazy.init)(at)
    for grads in zip(*runs, strict=True):
        step = jax.vmap(lazy.update)
        updates, state = step(jax.tree.map(stack, *grads), state, at)
        at = applied(at, updates)
    for lane, (out, last) in enumerate(want):
        mine = jax.tree.map(lambda leaf, lane=lane: leaf[lane], (at, state))
        assert_same(mine, (out[-1], last), ulps=32)


@pytest.mark.parametrize("axis", [0, 1])
def test_tables_of_a_stack_have_rows_of_their_own(axis):
    lazy = ot.lazy_rows(tiger(accumulate_steps=2), tables="emb")
    one = [{"emb": values((6, 3), jnp.float32, seed)} for seed in range(2)]
    grads = [
        [{"emb": jnp.zeros((6, 3)).at[row].set(1.0)} for row in rows]
        for rows in ((0, 4), (5, 1))
    ]
    stack = lambda *leaves: jnp.stack(leaves, axis)
    tx = ot.per_layer(lazy, {"emb": axis})
    start = jax.tree.map(stack, *one)
    state, updates = tx.init(start), None
    for pair in grads:
        updates, state = tx.update(jax.tree.map(stack, *pair), state, start)
    want = []
    for layer in range(2):
        inner, update = lazy.init(one[layer]), None
        for pair in grads:
            update, inner = lazy.update(pair[layer], inner, one[layer])
        want.append(update)
    assert_same(updates, jax.tree.map(stack, *want), ulps=4)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("axes", [("rows", None), (None, "rows")], ids=str)
def test_flags_lie_where_the_rows_do(axes, kind):
    mesh = jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(kind,) * 2)
    place = lambda x, *spec: jax.device_put(
        x, NamedSharding(mesh, PartitionSpec(*spec))
    )
    put = lambda tree: {"emb": place(tree["emb"], *axes), "w": place(tree["w"])}
    lazy = ot.lazy_rows(tiger(accumulate_steps=K), tables="emb")
    grads, _ = calls(windows=1)
    want, _ = path(lazy, params(), grads)
    start = put(params())
    got, state = path(lazy, start, [put(grad) for grad in grads])
    assert_same(got, want, ulps=32)
    first = lazy.init(start)
    planned = ot.state_shardings(lazy, start)
    made = jax.jit(lazy.init, out_shardings=planned)(start)
    flags = NamedSharding(mesh, PartitionSpec(axes[0]))
    for held in first, made, state:
        assert held.touched[0].sharding.is_equivalent_to(flags, 1)
        assert layout(held) == layout(first)


def test_optax_finds_the_parameters_in_the_state():
    lazy = ot.lazy_rows(tiger(accumulate_steps=K), tables="emb")
    state = lazy.init(params())
    names = {"emb": "emb", "w": "w"}
    found: Any = optax.tree.map_params(
        lazy, lambda _, name: name, state, names, transform_non_params=lambda _: None
    )
    assert found.touched is None
    assert [x for x in jax.tree.leaves(found)] == ["emb", "w"]


@pytest.mark.parametrize(
    "inner",
    [
        tiger(accumulate_steps=K),
        optax.MultiSteps(tiger(accumulate_steps=2), 2),
        optax.chain(optax.scale_by_adam(), at_end(optax.sgd(0.1))),
        optax.chain(optax.apply_every(2), optax.adam(0.1)),
    ],
)
def test_moments_that_change_inside_a_window_cannot_be_frozen(inner):
    lazy = ot.lazy_rows(inner, tables="emb", moments="freeze")
    with pytest.raises(ValueError, match=r"at 'emb' to rest inside a window.*MultiSt"):
        lazy.init(params())
    with pytest.raises(ValueError, match=r"MultiSteps\(ot.lazy_rows\(ot.tiger"):
        lazy.init(params())


def test_the_order_that_the_error_names_freezes_tiger():
    lazy = lambda: ot.lazy_rows(tiger(), tables="emb", moments="freeze")
    grads, rows = calls()
    # Inside, the window's rows are those of its mean.
    mean, _ = means(grads, rows)
    got, _ = path(optax.MultiSteps(lazy(), K), params(), grads)
    want, _ = path(lazy(), params(), mean)
    assert_same(got[K - 1 :: K], want, ulps=32)


@pytest.mark.parametrize("moments", ["decay", "freeze"])
def test_rows_alone_cannot_be_accumulated(moments):
    lazy = ot.lazy_rows(multi(adam()), tables="emb", moments=moments)
    rows = ot.RowSparse(jnp.asarray([1]), jnp.ones((1, WIDTH)), ROWS)
    grads = {"emb": rows, "w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match=r"'emb' is a RowSparse, which .*to_dense\(\)"):
        lazy.update(grads, lazy.init(params()), params())


def test_a_state_from_elsewhere_is_refused():
    lazy = ot.lazy_rows(multi(adam()), tables="emb")
    state, grads = lazy.init(params()), calls()[0][0]
    with pytest.raises(TypeError, match="lazy_rows needs a state of type LazyRowsSt"):
        lazy.update(grads, state.inner, params())
    other = {"emb": jnp.ones((ROWS + 1, WIDTH)), "w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="initialised for 16 rows at 'emb' but got"):
        lazy.update(other, state, other)
    two = {**params(), "emb2": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="initialised for 1 leaves but got updates w"):
        lazy.update(two, state, two)
