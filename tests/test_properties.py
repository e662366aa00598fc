"""Laws on random trees, random hyperparameters and random chains.

Leaves of every floating dtype, of no entries, of rank 0 to 3, and holes, in nested
dicts, tuples and dataclasses. Every row of `tests/cases.py` is drawn from.
"""

from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optaxtricks as ot
from tests.cases import CASES, REAL_DTYPES, Case
from tests.problems import PairNode, applied, assert_same, gradients, layout, values

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
SHAPES = [(), (0,), (1,), (3,), (2, 3), (4, 2), (0, 2), (2, 0, 2), (2, 1, 3)]
NARROW = REAL_DTYPES[:3]
FRACTIONS = st.sampled_from([0.03125, 0.1, 0.25, 0.5, 0.7, 0.9, 0.984375])


def few(count: int) -> Any:
    """So many examples of a law; the first of them may take long to compile."""
    return hypothesis.settings(
        max_examples=count,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )


def leaves(dtypes: Any, shapes: Any = tuple(SHAPES)) -> Any:
    """Shapes and dtypes, from which `grown` makes arrays once x64 is as they need."""
    spec = lambda shape, dtype: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return st.builds(spec, st.sampled_from(shapes), st.sampled_from(dtypes))


def trees(dtypes: Any = NARROW) -> Any:
    """Nested containers with a matrix and a vector at least."""
    pair = lambda inside: st.builds(PairNode, inside, inside)
    inside = st.recursive(
        leaves(dtypes) | st.none(),
        lambda inside: st.one_of(
            st.dictionaries(st.sampled_from("abc"), inside, min_size=1, max_size=2),
            st.tuples(inside, inside),
            pair(inside),
        ),
        max_leaves=3,
    )
    matrix, vector = [(4, 2), (2, 1, 3)], [(3,), (1,)]
    return st.fixed_dictionaries(
        {
            "emb": leaves(dtypes, matrix),
            "flat": leaves(dtypes, vector),
            "rest": inside,
        }
    )


def grown(tree: Any, seed: int = 0) -> Any:
    """Arrays in place of shapes and dtypes."""
    return jax.tree.map(lambda leaf: values(leaf.shape, leaf.dtype, seed), tree)


def is_wide(tree: Any) -> bool:
    return any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(tree))


def walk(tx: Any, params: Any, steps: int, update: Any = None, **extra: Any) -> Any:
    """Updates and states of a few steps at parameters that stay."""
    states, outputs = [tx.init(params)], []
    for seed in range(steps):
        grads = gradients(params, seed + 1)
        updates, state = (update or tx.update)(grads, states[-1], params, **extra)
        states.append(state)
        outputs.append(updates)
    return outputs, states


def assert_layouts_stay(params: Any, outputs: Any, states: Any) -> None:
    for updates in outputs:
        assert layout(updates) == layout(params)
    for state in states:
        assert layout(state) == layout(states[0])


@pytest.mark.slow
@each_case
@few(3)
@hypothesis.given(data=st.data())
def test_every_case_keeps_the_layout_of_any_tree(case: Case, data: Any) -> None:
    shapes = data.draw(trees(sorted(set(case.dtypes) & set(REAL_DTYPES))))
    with (
        jax.enable_x64(is_wide(shapes)),
        jax.numpy_dtype_promotion(case.promotion),
    ):
        params = grown(shapes)
        outputs, states = walk(case.make(params), params, 2, **case.extra_args(params))
        assert_layouts_stay(case.as_updates(params), outputs, states)


def every_entry(params: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.ndim == 0 or np.ones(leaf.shape, bool), params
    )


# A link of a chain: from parameters and three random fractions, a transformation.
Link = Callable[[Any, float, float, int], Any]
LINKS: dict[str, Link] = {
    "dropout": lambda p, a, b, n: ot.gradient_dropout(a, key=n),
    "rows": lambda p, a, b, n: ot.update_dropout(a, key=n, granularity="row"),
    "keep": lambda p, a, b, n: ot.keep_entries(every_entry(p), rescale=True),
    "lion": lambda p, a, b, n: ot.scale_by_lion(a, b),
    "power": lambda p, a, b, n: ot.scale_by_lion(a, b, exponent=0.5, cautious=True),
    "tiger": lambda p, a, b, n: ot.scale_by_tiger(a, accumulate_steps=n % 3 + 1),
    "rms": lambda p, a, b, n: ot.scale_by_param_rms(floor=a, rows="emb"),
    "lazy": lambda p, a, b, n: ot.lazy_rows(optax.trace(a), tables="emb"),
    "window": lambda p, a, b, n: ot.at_window_end(optax.trace(a), accumulate_steps=2),
    "compact": lambda p, a, b, n: ot.compact_entries(optax.trace(a), every_entry(p)),
    "scale": lambda p, a, b, n: optax.scale(-a),
    "clip": lambda p, a, b, n: optax.clip(a),
    "trace": lambda p, a, b, n: optax.trace(a, nesterov=n % 2 > 0),
    "masked": lambda p, a, b, n: optax.masked(
        ot.scale_by_lion(a), {"emb": True, "flat": True, "rest": False}
    ),
}
LINK = st.tuples(
    st.sampled_from(sorted(LINKS)), FRACTIONS, FRACTIONS, st.integers(0, 9)
)


@few(10)
@hypothesis.given(shapes=trees(), chain=st.lists(LINK, min_size=1, max_size=3))
def test_random_chains_are_the_same_compiled(shapes: Any, chain: Any) -> None:
    params = grown(shapes)
    tx = optax.chain(*[LINKS[name](params, a, b, n) for name, a, b, n in chain])
    outputs, states = walk(tx, params, 2)
    assert_layouts_stay(params, outputs, states)
    compiled = walk(tx, params, 2, jax.jit(tx.update))
    assert_same(compiled, (outputs, states), ulps=16)


@few(10)
@hypothesis.given(
    shapes=trees(),
    key=st.integers(0, 2**64 - 1),
    granularity=st.sampled_from(["element", "row", "leaf"]),
    distribution=st.sampled_from(["bernoulli", "gaussian"]),
)
@pytest.mark.parametrize("dropout", [ot.gradient_dropout, ot.update_dropout])
def test_a_keep_rate_of_one_is_the_identity(
    dropout: Any, shapes: Any, key: int, granularity: str, distribution: str
) -> None:
    params = grown(shapes)
    odd = lambda leaf: leaf.at[..., :1].set(jnp.nan) if leaf.ndim else -leaf * 0
    grads = jax.tree.map(odd, params)
    tx = dropout(1.0, key=key, granularity=granularity, distribution=distribution)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert_same(updates, grads)
    scheduled = dropout(lambda step: 1.0 + 0 * step, key=key, granularity=granularity)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = scheduled.update(grads, scheduled.init(params), params)
    assert_same(updates, grads)


DECAYING: dict[str, Callable[[float], Any]] = {
    "sgd": lambda a: optax.chain(optax.add_decayed_weights(0.5), optax.sgd(a)),
    "lion": lambda a: ot.lion(a, weight_decay=0.5),
    "tiger": lambda a: ot.tiger(a, weight_decay=0.5),
}


@few(4)
@hypothesis.given(shapes=trees(), a=FRACTIONS, seed=st.integers(0, 99))
@pytest.mark.parametrize("inner", DECAYING.values(), ids=DECAYING)
def test_entries_outside_the_mask_never_move(
    inner: Any, shapes: Any, a: float, seed: int
) -> None:
    params = start = grown(shapes)
    mask = jax.tree.map(
        lambda leaf: np.random.default_rng(seed).random(leaf.shape) < 0.5, params
    )
    tx = ot.child_tuning_d(inner(a), mask)
    state = tx.init(params)
    for step in range(3):
        updates, state = tx.update(gradients(params, step), state, params)
        params = applied(params, updates)
    off = lambda tree: jax.tree.map(lambda x, m: np.asarray(x)[~m], tree, mask)
    assert_same(off(params), off(start))
    moved = jax.tree.map(
        lambda x, y, m: (np.asarray(x != y)[m]).any(), params, start, mask
    )
    kept = [bool(m.any()) for m in jax.tree.leaves(mask)]
    assert any(jax.tree.leaves(moved)) or not any(kept)


@few(4)
@hypothesis.given(shapes=trees(), a=FRACTIONS)
@pytest.mark.parametrize("moments", ["decay", "freeze"])
@pytest.mark.parametrize("inner", DECAYING.values(), ids=DECAYING)
def test_lazy_rows_that_are_all_touched_are_inner(
    inner: Any, moments: str, shapes: Any, a: float
) -> None:
    params = grown(shapes)
    lazy: Any = ot.lazy_rows
    got = walk(lazy(inner(a), tables="emb", moments=moments), params, 2)
    assert_same(got, walk(inner(a), params, 2))


@few(8)
@hypothesis.given(
    shapes=trees(["float32"]), beta=FRACTIONS, k=st.integers(2, 4), a=FRACTIONS
)
def test_tigers_window_is_one_step_on_its_mean(
    shapes: Any, beta: float, k: int, a: float
) -> None:
    params = grown(shapes)
    window: Any = ot.scale_by_tiger(beta, accumulate_steps=k, exponent=a)
    plain: Any = ot.scale_by_tiger(beta, exponent=a)
    one, other, updates = window.init(params), plain.init(params), params
    for start in (0, k):
        grads = [gradients(params, start + i) for i in range(k)]
        for i, now in enumerate(grads):
            updates, one = window.update(now, one, params)
            if i < k - 1:
                assert_same(updates, jax.tree.map(jnp.zeros_like, params))
        mean = jax.tree.map(lambda *g: sum(g) / len(g), *grads)
        want, other = plain.update(mean, other, params)
        assert_same(one.mu, other.mu, ulps=16)
        clear = jax.tree.map(lambda m: np.abs(m) > 1e-4, other.mu)
        seen = lambda tree, clear=clear: jax.tree.map(
            lambda x, c: np.asarray(x)[np.asarray(c)], tree, clear
        )
        # A power of what is nearly zero has the rounding of many ulps.
        assert_same(seen(updates), seen(want), ulps=2**13)
