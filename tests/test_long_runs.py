"""Long runs: counters, accumulators, memory and traces after very many steps."""

import gc
import resource
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.cases import CASES, Case
from tests.problems import assert_same, gradients, layout, values

pytestmark = pytest.mark.slow
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
LAST = 2**31 - 1
STEPS = 100_000


@pytest.fixture(autouse=True)
def promotion(request: pytest.FixtureRequest) -> Any:
    chosen = getattr(getattr(request.node, "callspec", None), "params", {})
    kind = chosen["case"].promotion if "case" in chosen else "strict"
    with jax.numpy_dtype_promotion(kind):
        yield


def tiny_tree(dtype: Any = jnp.float32) -> Any:
    shapes = {"emb": (4, 2), "layer": {"b": (3,), "w": (2, 3)}, "scale": ()}
    is_shape = lambda node: isinstance(node, tuple)
    return jax.tree.map(lambda s: values(s, dtype, 0), shapes, is_leaf=is_shape)


def is_counter(leaf: Any) -> bool:
    """Whether a leaf of a state is an int32 scalar."""
    return leaf.shape == () and leaf.dtype == jnp.int32


def counters(state: Any) -> list[Any]:
    """All such leaves."""
    return [leaf for leaf in jax.tree.leaves(state) if is_counter(leaf)]


def finite(tree: Any) -> bool:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


@each_case
def test_a_hundred_thousand_steps(case: Case) -> None:
    params = tiny_tree()
    tx, extra = case.make(params), case.extra_args(params)
    first, second = gradients(params, 1), gradients(params, 2)

    def step(state: Any, number: jax.Array) -> Any:
        grads = jax.tree.map(
            lambda x, y: jnp.where(number % 3 == 0, x, y), first, second
        )
        updates, state = tx.update(grads, state, params, **extra)
        return state, jax.tree.map(lambda u: jnp.abs(u).max(), updates)

    start = tx.init(params)
    run = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(STEPS)))
    state, sizes = run(start)
    assert layout(state) == layout(start)
    assert finite(state) and finite(sizes)
    # A counter counts all updates, or the place in a window, or windows.
    given = case.arguments(params)
    windows = {given.get(name, 1) for name in ("accumulate_steps", "every")} | {1}
    expected = {STEPS // k for k in windows} | {STEPS % k for k in windows}
    assert {int(count) for count in counters(state)} <= expected
    # The updates neither die out nor grow: the gradients repeat.
    for leaf in jax.tree.leaves(sizes):
        early, late = np.asarray(leaf[1000:3000]), np.asarray(leaf[-2000:])
        assert abs(late.mean() - early.mean()) <= 0.1 * early.mean()


@each_case
def test_counters_stand_still_at_the_largest_number(case: Case) -> None:
    params = tiny_tree()
    tx, extra = case.make(params), case.extra_args(params)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    chex.clear_trace_counter()

    def run(state: Any) -> tuple[Any, list[bool]]:
        """The states, and whether anything moved."""
        states, moved = [state], []
        for seed in range(6):
            grads = gradients(params, seed)
            updates, state = update(grads, states[-1], params, **extra)
            assert layout(state) == layout(states[0])
            assert finite(updates) and finite(state)
            states.append(state)
            moved.append(any(bool(u.any()) for u in jax.tree.leaves(updates)))
        return states, moved

    states, moved = run(tx.init(params))
    fresh, structure = jax.tree.flatten(states[0])
    # What goes up and never down counts; what does not is a place in a window.
    history = [jax.tree.leaves(state) for state in states]
    counts = [
        [int(leaf) for leaf in leaves]
        if is_counter(leaves[0]) and len({int(leaf) for leaf in leaves}) > 2
        else None
        for leaves in zip(*history, strict=True)
    ]
    # A multiple of 4, so that windows begin where they did.
    late = [
        leaf if count is None else jnp.asarray(LAST - 3, jnp.int32)
        for leaf, count in zip(fresh, counts, strict=True)
    ]
    states, moved_late = run(jax.tree.unflatten(structure, late))
    if "accumulate_steps" in case.arguments(params):
        assert moved_late == moved and not all(moved)
    else:
        assert any(moved_late)
    for leaf, count in zip(jax.tree.leaves(states[-1]), counts, strict=True):
        # The last number or, where the place in a window counts, one beside it.
        assert count is None or LAST - 4 < int(leaf) <= LAST


def test_masks_stay_defined_at_the_largest_step() -> None:
    tree = {"w": jnp.ones((64, 64))}
    tx: Any = ot.gradient_dropout(0.5, key=0)
    start: Any = tx.init(tree)
    state: Any = ot.DropoutState(words=start.words, step=jnp.int32(LAST - 1))
    kept = []
    for step in (LAST - 1, LAST, LAST):
        updates, state = tx.update(tree, state)
        mask = ot.dropout_mask(tree, 0.5, key=0, step=step)
        assert_same(jax.tree.map(lambda u: u != 0, updates), mask)
        kept.append(np.asarray(mask["w"]))
    assert abs(kept[0].mean() - 0.5) < 5 * 0.5 / 64
    assert (kept[0] != kept[1]).any() and (kept[1] == kept[2]).all()
    assert int(state.step) == LAST


# Accumulators against float64: relative errors of momenta after 100,000 steps.


def momenta(tx: Any, dtype: Any, grads: np.ndarray) -> np.ndarray:
    """The momentum at the end of a scan over gradients."""
    params = jnp.zeros(grads.shape[1], jnp.float32)
    step = lambda state, g: (tx.update(g, state, params)[1], None)
    run = jax.jit(lambda state, g: jax.lax.scan(step, state, g)[0])
    state = run(tx.init(params), jnp.asarray(grads, jnp.float32))
    assert state.mu.dtype == dtype
    return np.asarray(state.mu.astype(jnp.float32), np.float64)


def stream() -> np.ndarray:
    """Gradients with a mean, so that momentum does not come near zero."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(STEPS, 8)) + np.linspace(3, 6, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("dtype", "room"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.25)], ids=str
)
def test_lions_momentum_after_a_long_run(dtype: Any, room: float) -> None:
    grads, b2 = stream(), 0.99
    want = np.zeros(8)
    for g in grads.astype(np.float64):
        want = b2 * want + (1 - b2) * g
    got = momenta(ot.scale_by_lion(0.9, b2, mu_dtype=dtype), dtype, grads)
    # In bfloat16 a step of less than half an ulp of the momentum is lost: it stands
    # still within 2**-9 / (1 - b2) of the mean, in relation to it.
    np.testing.assert_allclose(got, want, rtol=room)


@pytest.mark.parametrize("k", [1, 64])
@pytest.mark.parametrize(
    ("dtype", "room"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.25)], ids=str
)
def test_tigers_accumulator_after_a_long_run(dtype: Any, room: float, k: int) -> None:
    beta = 0.965
    grads = stream()[: STEPS // k * k]
    want = np.zeros(8)
    for g in grads.astype(np.float64).reshape(-1, k, 8).mean(axis=1):
        want = beta * want + (1 - beta) * g
    tx = ot.scale_by_tiger(beta, accumulate_steps=k, mu_dtype=dtype)
    got = momenta(tx, dtype, grads)
    if dtype == jnp.bfloat16 and k > 1:
        # Inside a window every call is rounded, and a share of 0.035 / 64 of the
        # gradient is less than half an ulp: all that the docstring says, and no more.
        assert np.isfinite(got).all() and (np.abs(got) <= 2 * np.abs(want)).all()
        return
    np.testing.assert_allclose(got, want, rtol=room)


@each_case
def test_memory_stays_flat_and_nothing_is_traced_again(case: Case) -> None:
    chex.clear_trace_counter()
    params = tiny_tree()
    tx, extra = case.make(params), case.extra_args(params)
    grads = gradients(params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    traced_once = chex.assert_max_traces(step, n=1)
    compiled = jax.jit(traced_once, donate_argnums=(0, 1))
    held = jax.tree.map(jnp.copy, params), tx.init(params)
    held = compiled(*held, grads)
    jax.block_until_ready(held)
    gc.collect()
    arrays = len(jax.live_arrays())
    # An allocator may take pages for some windows, but a leak grows in every one.
    for _ in range(10):
        peak = _peak()
        for _ in range(2000):
            held = compiled(*held, grads)
        jax.block_until_ready(held)
        gc.collect()
        assert len(jax.live_arrays()) == arrays
        # Leaking one state a step would be 2,000 times its buffers, of 64 bytes each.
        if _peak() - peak < 64 * 2000:
            return
    pytest.fail("the process grew in each of ten windows of 2,000 steps")


def _peak() -> int:
    """The most memory that the process has held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
