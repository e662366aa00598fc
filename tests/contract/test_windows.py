"""A call is not a step: in a window every transformation counts optimizer steps."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optaxtricks as ot
from tests.cases import CASES, Case
from tests.problems import applied, assert_same, gradients, small_tree

K, STEPS = 2, 3
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def _multi(tx: Any) -> Any:
    return optax.MultiSteps(tx, K)


def _at_end(tx: Any) -> Any:
    return ot.at_window_end(tx, accumulate_steps=K)


def _path(tx: Any, params: Any, grads: list[Any], extra: Any) -> tuple[Any, Any]:
    """The parameters after every call, and the last state."""
    state, out, update = tx.init(params), [], jax.jit(tx.update)
    for grad in grads:
        updates, state = update(grad, state, params, **extra)
        params = applied(params, updates)
        out.append(params)
    return out, state


def _counts(tree: Any) -> list[Any]:
    """Numbers of steps, and other whole numbers."""
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.integer)]


@pytest.mark.parametrize(
    "wrap", [_multi, pytest.param(_at_end, marks=pytest.mark.slow)]
)
@each_case
def test_a_window_is_one_step(case: Case, wrap: Any) -> None:
    """Equal gradients in a window: at its end they are its last and its mean."""
    params, extra = case.params(jnp.float32), {}
    extra = case.extra_args(params)
    steps = [gradients(params, seed) for seed in range(STEPS)]
    calls = [grad for grad in steps for _ in range(K)]
    got, state = _path(wrap(case.make(params)), params, calls, extra)
    want, plain = _path(case.make(params), params, steps, extra)
    ulps = max(4, 4 * case.ulps)
    assert_same(got[K - 1 :: K], want, ulps=ulps)
    assert_same(got[::K], [params, *want[:-1]], ulps=ulps)
    inner = state.inner if wrap is _at_end else state.inner_opt_state
    assert_same(_counts(inner), _counts(plain))


def _rate(step: Any) -> Any:
    return jnp.where(step < 1, 0.5, jnp.where(step < 2, 0.25, 0.125))


def _exponent(step: Any) -> Any:
    return jnp.where(step < 1, 0.0, 0.5)


SIGNS: dict[str, Any] = {
    "tiger": lambda **k: ot.tiger(_rate, exponent=_exponent, embeddings="emb", **k),
    "tiger, not relative": lambda **k: ot.tiger(
        _rate, exponent=_exponent, relative=False, shrink=None, **k
    ),
    "mixed_sign": lambda **k: ot.mixed_sign(
        _rate,
        embeddings="emb",
        sign="tiger",
        adam_learning_rate=lambda step: 2 * _rate(step),
        exponent=_exponent,
        **k,
    ),
    "parts": lambda **k: optax.chain(
        ot.scale_by_tiger(exponent=_exponent, **k),
        ot.at_window_end(
            ot.two_timescale(
                optax.identity(), _rate, fast="emb", fast_learning_rate=_exponent
            ),
            accumulate_steps=k.get("accumulate_steps", 1),
        ),
    ),
}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("make", SIGNS.values(), ids=SIGNS)
def test_schedules_of_sign_methods_count_windows(make: Any, k: int) -> None:
    params = small_tree()
    calls = [gradients(params, seed) for seed in range(STEPS * k)]
    mean = lambda *leaves: sum(leaves) / k
    means = [jax.tree.map(mean, *calls[i * k : i * k + k]) for i in range(STEPS)]
    got, _ = _path(make(accumulate_steps=k), params, calls, {})
    want, _ = _path(make(), params, means, {})
    for call, after in enumerate(got):
        before = params if call < k - 1 else want[(call + 1) // k - 1]
        assert_same(after, before, ulps=64)
