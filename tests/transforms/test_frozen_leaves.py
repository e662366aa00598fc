"""Leaves under `False`: of any dtype, whatever their gradient, and never moved."""

from typing import Any, cast

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optaxtricks
from tests.problems import assert_same, layout

# Bad arguments are given on purpose.
ot = cast(Any, optaxtricks)
applied: Any = optax.apply_updates

CODES = jnp.array([[-128, 127], [3, -4]], jnp.int8)
OTHERS = {
    "uint8": jnp.array([0, 255], jnp.uint8),
    "int32": jnp.array([-7, 2**31 - 1]),
    "bool": jnp.array([True, False]),
    "int4": jnp.array([-8, 7], jnp.int4),
}
INNER = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.5, momentum=0.5))
KEPT = np.array([True, False, True])


def params(codes: Any = CODES) -> Any:
    """A frozen part of another dtype and one of floats, and a part that is trained."""
    return {
        "codes": codes,
        "scale": jnp.array([-0.0, 0.0]),
        "w": jnp.array([1.0, 2, 3]),
    }


def mask() -> Any:
    return {"codes": False, "scale": False, "w": KEPT}


FACTORIES = {
    "keep_entries": lambda mask: ot.keep_entries(mask),
    "compact_entries": lambda mask: ot.compact_entries(INNER, mask),
    "child_tuning_d": lambda mask: ot.child_tuning_d(INNER, mask),
    "child_tuning_d_rescaled": lambda mask: ot.child_tuning_d(
        INNER, mask, rescale=True
    ),
}
each_factory = pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES)


def loss(p: Any) -> Any:
    return jnp.sum(p["w"] ** 2) + jnp.sum(p["codes"].astype(jnp.float32))


def of(kind: str, p: Any) -> Any:
    """Gradients: as `jax.grad` gives them, and in other ways."""
    bitless = jax.grad(loss, allow_int=True)(p)
    codes = {
        "float0": bitless["codes"],
        "own zeros": jnp.zeros_like(p["codes"]),
        "float32": jnp.full(p["codes"].shape, jnp.nan),
        "None": None,
    }
    return {**bitless, "codes": codes[kind]}


def step(tx: Any, kind: str, p: Any, state: Any) -> Any:
    updates, state = tx.update(of(kind, p), state, p)
    return applied(p, updates), state


KINDS = ("float0", "own zeros", "float32", "None")


@each_factory
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*[(kind, "int8") for kind in KINDS], *[("float0", dtype) for dtype in OTHERS]],
)
def test_frozen_leaves_keep_bits_and_dtype(make: Any, kind: str, dtype: str) -> None:
    start = params(OTHERS.get(dtype, CODES))
    tx = make(mask())
    p, state = start, tx.init(start)
    for _ in range(2):
        p, after = step(tx, kind, p, state)
        assert layout(after) == layout(state)
        state = after
    assert_same({**p, "w": 0}, {**start, "w": 0})
    # The rest moves as it does alone.
    alone = make({"w": KEPT})
    w, state = {"w": start["w"]}, alone.init({"w": start["w"]})
    for _ in range(2):
        updates, state = alone.update({"w": 2 * w["w"]}, state, w)
        w = applied(w, updates)
    assert_same(p["w"], w["w"])
    assert (p["w"] != start["w"]).tolist() == KEPT.tolist()


@each_factory
@pytest.mark.parametrize("kind", ["float0", "None"])
def test_compiled_and_donated(make: Any, kind: str) -> None:
    tx = make(mask())
    want, wanted = step(tx, kind, params(), tx.init(params()))
    compiled: Any = jax.jit(lambda p, s: step(tx, kind, p, s), donate_argnums=(0, 1))
    fresh = jax.tree.map(jnp.copy, params())
    assert_same(compiled(fresh, jax.jit(tx.init)(params())), (want, wanted))
    assert compiled._cache_size() == 1


@each_factory
def test_a_gradient_that_is_no_number_may_enter_a_compiled_step(make: Any) -> None:
    tx, p = make(mask()), params()
    grads, state = of("float0", p), tx.init(p)
    got = jax.jit(tx.update)(grads, state, p)
    assert_same(got, tx.update(grads, state, p))


@each_factory
def test_a_restored_state_goes_on(make: Any) -> None:
    tx = make(mask())
    p, state = step(tx, "float0", params(), tx.init(params()))
    saved = flax.serialization.to_bytes(state)
    back = flax.serialization.from_bytes(tx.init(params()), saved)
    assert_same(step(tx, "None", p, back), step(tx, "None", p, state))


@each_factory
def test_frozen_leaves_that_are_no_floats_take_no_state(make: Any) -> None:
    held = lambda p, m: sum(x.nbytes for x in jax.tree.leaves(make(m).init(p)))
    p, m = params(), mask()
    both = held(p, m)
    for tree in p, m:
        del tree["codes"]
    assert both == held(p, m)


@each_factory
def test_a_whole_subtree_and_containers(make: Any) -> None:
    tree: Any = {"body": [CODES, {"x": OTHERS["bool"]}], "w": jnp.ones(3)}
    tx = make({"body": False, "w": KEPT})
    grads = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)(tree)
    updates, _ = tx.update(grads, tx.init(tree), tree)
    assert_same(applied(tree, updates)["body"], tree["body"])
    boxed = nnx.State({k: nnx.Param(v) for k, v in params().items()})
    plain = nnx.State(params())
    tx = make(nnx.State(mask()))
    got, _ = tx.update(nnx.State(of("float0", params())), tx.init(plain), plain)
    assert_same(applied(plain, got)["codes"], CODES)
    count = len(jax.tree.leaves(tx.init(plain)))
    assert len(jax.tree.leaves(tx.init(boxed))) == count


@each_factory
def test_inside_wrappers_of_optax(make: Any) -> None:
    p = {**params(), "more": jnp.ones(2)}
    grads = {**of("float0", params()), "more": jnp.ones(2)}
    labels = {"codes": "it", "scale": "it", "w": "it", "more": "plain"}
    parts: Any = {"it": make(mask()), "plain": optax.sgd(1.0)}
    shown = {"codes": True, "scale": True, "w": True, "more": False}
    for tx in optax.partition(parts, labels), optax.masked(make(mask()), shown):
        updates, _ = tx.update(grads, tx.init(p), p)
        after = applied(p, updates)
        assert_same(after["codes"], CODES)
        assert (after["w"] != p["w"]).tolist() == KEPT.tolist()


@each_factory
def test_map_params(make: Any) -> None:
    tx: Any = make(mask())
    state = tx.init(params())
    assert_same(optax.tree.map_params(tx, lambda leaf: leaf, state), state)
    assert ot.summary(tx, params()).splitlines()[1].split()[:3] == ["codes", "4", "0"]


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_leaves_beside_a_ladder(kind: str) -> None:
    # Its own frozen floats get 0.0, which makes 0.0 of -0.0.
    p = {**params(), "scale": jnp.ones(2)}
    grads = {**of(kind, p), "codes": of(kind, p)["codes"]}
    if kind == "float32":
        grads["codes"] = None  # optax.set_to_zero keeps the dtype of a gradient
    for inner, kept in (INNER, [True] * 3), (ot.child_tuning_d(INNER, mask()), KEPT):
        tx = ot.ladder(inner, side="^w$")
        updates, _ = tx.update(grads, tx.init(p), p)
        after = applied(p, updates)
        assert_same({**after, "w": 0}, {**p, "w": 0})
        assert (after["w"] != p["w"]).tolist() == list(kept)


@each_factory
@pytest.mark.parametrize("entry", [True, np.ones((2, 2), bool)], ids=["on", "array"])
def test_leaves_that_are_trained_must_be_floats(make: Any, entry: Any) -> None:
    tx = make({**mask(), "codes": entry})
    with pytest.raises(TypeError, match="'codes' has dtype int8; leave it out with Fa"):
        tx.init(params())
    floats = params(jnp.ones((2, 2)))
    with pytest.raises(TypeError, match="'codes' has dtype int8; leave it out with Fa"):
        tx.update(params(), tx.init(floats), floats)


@each_factory
def test_what_a_frozen_leaf_cannot_be(make: Any) -> None:
    tx = make(mask())
    for wrong in ("int8", object(), jax.random.key(0)):
        with pytest.raises(TypeError, match="leaf at 'codes'"):
            tx.init({**params(), "codes": wrong})
    with pytest.raises(ValueError, match=r"needs params in update: .* at 'codes' is f"):
        tx.update(of("float0", params()), tx.init(params()))
