"""Inside per_layer every transformation does to a stack what it does to its layers."""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import pytest

import optaxtricks as ot
from tests.cases import CASES
from tests.problems import (
    applied,
    assert_same,
    layout,
    temp_bytes_of_step,
    values,
    version,
)
from tests.transforms.stacks import (
    AXES,
    LAYERS,
    one_layer,
    share_words,
    sparse_gradients,
    stacked,
    unrolled,
)

STEPS = 3
OPTAX: dict[str, Callable[[], Any]] = {
    "adamw": lambda: optax.adamw(0.1),
    "lamb": lambda: optax.lamb(0.1, weight_decay=0.1),
    "lars": lambda: optax.lars(0.1, weight_decay=0.1),
    "scale_by_trust_ratio": optax.scale_by_trust_ratio,
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    "muon": lambda: optax.contrib.muon(0.1),
    "clip_by_block_rms": lambda: optax.clip_by_block_rms(0.5),
    "MultiSteps": lambda: optax.MultiSteps(
        optax.lamb(0.1), 2
    ).gradient_transformation(),
}
MAKE: dict[str, Callable[[Any], Any]] = {
    # What is told of stacks itself stays outside.
    **{
        name: case.make
        for name, case in CASES.items()
        if "stacked" not in case.arguments(unrolled())
    },
    **{name: lambda params, make=make: make() for name, make in OPTAX.items()},
}


def _stateless(update: Any) -> optax.GradientTransformationExtraArgs:
    init = lambda params: optax.EmptyState()
    return optax.GradientTransformationExtraArgs(init, update)


def compare(name: str, dtype: Any, axis: int) -> None:
    """Both sides from the same parameters at every step, as roundings may add up."""
    # Products of many matrices add up in another order than one, and each of the five
    # iterations makes the difference in small singular values three times larger.
    ulps = 512 if name == "muon" else 2
    with jax.numpy_dtype_promotion("standard"):
        params = unrolled(dtype)
        listed = MAKE[name](params)
        within = ot.per_layer(MAKE[name](one_layer(params)), {"^layers/": axis})
        state, held = listed.init(params), within.init(stacked(params, axis))
        first, second = jax.jit(listed.update), jax.jit(within.update)
        for step in range(STEPS):
            grads = sparse_gradients(params, step + 1)
            want, state = first(grads, state, params)
            got, held = second(stacked(grads, axis), held, stacked(params, axis))
            assert_same(got, stacked(want, axis), ulps=ulps)
            params = applied(params, want)


# One of each kind: a sum a tensor, draws, rows, a number a leaf, factors, a branch.
BRIEF = {"tiger", "gradient_dropout", "lazy_rows", "magma", "adafactor", "MultiSteps"}


def _each(brief: bool) -> Any:
    slow = lambda name: [] if brief and name in BRIEF else [pytest.mark.slow]
    params = [pytest.param(name, marks=slow(name)) for name in MAKE]
    return pytest.mark.parametrize("name", params)


@_each(brief=True)
def test_a_stack_is_the_list_of_its_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_words(monkeypatch)
    compare(name, jnp.float32, axis=1)


@_each(brief=False)
@pytest.mark.parametrize(
    ("axis", "dtype"),
    [(0, jnp.float32), (1, jnp.bfloat16)],
    ids=["0-float32", "1-bfloat16"],
)
def test_on_both_axes_and_in_bfloat16_too(
    name: str, axis: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_words(monkeypatch)
    compare(name, dtype, axis)


def test_the_state_is_laid_out_as_without_it() -> None:
    """The same structure, shapes and dtypes; counts do not count layers."""
    params = stacked(unrolled(), 1)
    for name in ("adamw", "lamb", "lars", "MultiSteps"):
        tx = OPTAX[name]()
        got = ot.per_layer(tx, {"^layers/": 1}).init(params)
        assert layout(got) == layout(tx.init(params))


def test_factored_moments_keep_the_layer_axis() -> None:
    params = stacked(unrolled(), 1)
    tx = ot.per_layer(OPTAX["adafactor"](), {"^layers/": 1})
    rows = optax.tree.get(tx.init(params), "v_row")["layers"]["w"]
    columns = optax.tree.get(tx.init(params), "v_col")["layers"]["w"]
    assert {rows.shape, columns.shape} == {(8, LAYERS), (16, LAYERS)}


def test_optax_finds_the_parts_of_parameters() -> None:
    params = stacked(unrolled(), 1)
    tx: Any = ot.per_layer(optax.adamw(0.1), {"^layers/": 1})
    doubled = optax.tree.map_params(
        tx, lambda part, leaf: part + leaf, tx.init(params), params
    )
    assert_same(optax.tree.get(doubled, "mu"), params)


@pytest.mark.skipif(version(jax) < (0, 10), reason="its XLA fuses less on CPU")
@pytest.mark.parametrize("axis", AXES)
def test_no_temporary_of_parameter_size(axis: int) -> None:
    shape = [64, 256]
    shape.insert(axis, 6)
    params = {"layers": {"w": values(tuple(shape), jnp.float32, 0)}}
    with jax.numpy_dtype_promotion("standard"):
        for tx in (
            ot.tiger(0.1),
            ot.lion(0.1),
            optax.adamw(0.1),
            optax.chain(ot.gradient_dropout(0.3, key=0), optax.adamw(0.1)),
        ):
            within = ot.per_layer(tx, {"^layers/": axis})
            assert temp_bytes_of_step(within, params, params) < 8192


def test_the_program_does_not_grow_with_the_layers() -> None:
    def size(count: int) -> int:
        params = {"layers": {"w": jnp.ones((count, 8, 4)), "b": jnp.ones((count, 4))}}
        tx = ot.per_layer(ot.tiger(0.1), "^layers/")
        lowered = jax.jit(tx.update).lower(params, tx.init(params), params)
        return len(lowered.as_text().splitlines())

    assert size(3) == size(96)


@pytest.mark.usefixtures("standard_promotion")
def test_an_accumulation_inside_serves_stacks_of_two_lengths() -> None:
    """One branch over all leaves, and stacks of three and of four layers."""
    params = {
        "a": values((3, 4, 2), jnp.float32, 1),
        "b": values((4, 5), jnp.float32, 2),
    }
    inner = optax.MultiSteps(optax.lamb(0.1), 2).gradient_transformation()
    tx = ot.per_layer(inner, {"^a": 0, "^b": 1})
    state = tx.init(params)
    for _ in range(2):
        got, state = tx.update(params, state, params)
    plain = ot.per_layer(optax.lamb(0.1), {"^a": 0, "^b": 1})
    want, _ = plain.update(params, plain.init(params), params)
    assert_same(got, want, ulps=2)


def test_two_stacks_and_leaves_beside_them() -> None:
    """Stacks of two lengths, on two axes, and a leaf that is no stack."""
    parts = {
        "a": values((3, 4, 2), jnp.float32, 1),
        "b": values((4, 5), jnp.float32, 2),
    }
    params = {**parts, "c": values((4, 2), jnp.float32, 3)}
    tx = ot.per_layer(ot.scale_by_param_rms(), {"^a": 0, "^b": 1})
    ones = jax.tree.map(jnp.ones_like, params)
    got: Any = tx.update(ones, tx.init(params), params)[0]
    rms = lambda x, axes: jnp.broadcast_to(
        jnp.sqrt(jnp.square(x).mean(axis=axes, keepdims=True)), x.shape
    )
    want = {
        "a": rms(params["a"], (1, 2)),
        "b": rms(params["b"], (0,)),
        "c": rms(params["c"], None),
    }
    assert_same(got, want, ulps=2)


def test_a_stack_without_layers_is_left_alone() -> None:
    params = {"none": jnp.ones((0, 4)), "some": jnp.ones((2, 4))}
    tx = ot.per_layer(ot.tiger(0.1), "")
    updates, _ = tx.update(params, tx.init(params), params)
    assert layout(updates) == layout(params)


def test_extra_arguments_are_the_same_for_all_layers() -> None:
    seen: list[Any] = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append((extra["name"], extra["value"].shape))
        return jax.tree.map(lambda u: u * extra["value"], updates), state

    inner = _stateless(update)
    tx, params = ot.per_layer(inner, "w"), {"w": jnp.ones((3, 2))}
    got, _ = tx.update(
        params, tx.init(params), params, name="x", value=jnp.full((), 3.0)
    )
    assert seen == [("x", ())]
    assert_same(got, {"w": jnp.full((3, 2), 3.0)})


def test_row_sparse_gradients_pass_beside_stacks() -> None:
    table = jnp.ones((6, 4))
    params = {"emb": table, "layers": values((3, 4, 4), jnp.float32, 0)}
    rows = ot.RowSparse(jnp.array([4, 1]), jnp.ones((2, 4)), 6)
    inner = ot.lazy_rows(
        ot.tiger(0.5, embeddings="emb"), tables="emb", moments="freeze"
    )
    tx = ot.per_layer(inner, "^layers")
    dense = {"emb": rows.to_dense(), "layers": params["layers"]}
    sparse = {**dense, "emb": rows}
    got, want = (
        applied(params, tx.update(grads, tx.init(params), params)[0])
        for grads in (sparse, dense)
    )
    assert_same(got, want, ulps=2)


REFUSED = {
    "clip": (
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        "inner takes tensors together: its update at 'emb' depends on 'layers/b'",
    ),
    "if_finite": (
        lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
        "put what looks at several of them, such as optax.clip_by_global_norm",
    ),
    "noise": (
        lambda: optax.add_noise(0.1, 0.5, key=0),
        "draws random numbers from its state at 'rng_key', which would be the same in "
        "every layer of 'layers/b'",
    ),
    "mask": (
        lambda: ot.keep_entries(
            {"emb": True, "layers": {"b": jnp.ones((3, 2), bool), "w": True}}
        ),
        "per_layer shows one layer; a mask of all goes outside of it",
    ),
    "lengths": (
        lambda: ot.monitor_groups("all"),
        "keeps a number over stacks of different lengths together",
    ),
}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_means_another_thing_layer_by_layer_is_refused(
    make: Callable[[], Any], message: str
) -> None:
    params = {
        "emb": jnp.ones((4, 2)),
        "layers": {"b": jnp.ones((3, 2)), "w": jnp.ones((2, 5, 3))},
    }
    tx = ot.per_layer(make(), {"^layers/b": 0, "^layers/w": 1})
    with pytest.raises(ValueError, match=message):
        tx.init(params)


@pytest.mark.usefixtures("standard_promotion")
def test_what_looks_at_several_tensors_may_do_so_where_none_is_a_stack() -> None:
    """Every stack by itself, and the rest as without per_layer."""
    inner = optax.partition(
        {"rest": optax.clip_by_global_norm(1.0), "layers": optax.lamb(0.1)},
        ot.label_by_path({"^layers": "layers"}, default="rest"),
    )
    params = {"a": jnp.ones(3), "b": jnp.ones(1), "layers": jnp.ones((2, 3, 4))}
    tx = ot.per_layer(inner, "^layers")
    updates: Any = tx.update(params, tx.init(params), params)[0]
    assert_same((updates["a"], updates["b"]), (jnp.full(3, 0.5), jnp.full(1, 0.5)))


def test_the_same_found_out_in_update() -> None:
    """Where `update` cannot be traced without an argument of its own."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        total = sum(leaf.sum() for leaf in jax.tree.leaves(updates))
        return jax.tree.map(lambda u: u * total * value, updates), state

    params = {"a": jnp.ones(2), "layers": jnp.ones((3, 2))}
    tx = ot.per_layer(_stateless(update), "layers")
    with pytest.raises(ValueError, match="its update at 'a' depends on 'layers'"):
        tx.update(params, tx.init(params), params, value=jnp.ones(()))


def test_a_number_that_turns_out_to_be_a_layers_own_is_refused() -> None:
    """As `init` could not see it, it made one for all layers."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any) -> Any:
        return updates, state + value * updates["layers"].sum()

    inner = optax.GradientTransformationExtraArgs(
        lambda params: jnp.zeros(()), cast(Any, update)
    )
    params = {"layers": jnp.ones((3, 2))}
    tx = ot.per_layer(inner, "layers")
    with pytest.raises(ValueError, match="lets a layer enter into what all layers sha"):
        tx.update(params, tx.init(params), params, value=jnp.ones(()))


@pytest.mark.parametrize(
    ("stacked", "error", "message"),
    [
        ("blocks", ValueError, "stacked 'blocks' matches no leaf. Paths: 'a', 'w'"),
        (
            {"w": 2},
            ValueError,
            r"the leaf at 'w' has shape \(2, 3\) and so no layer axis",
        ),
        ("a", ValueError, r"the leaf at 'a' has shape \(\) and so no layer axis 0"),
        (3, TypeError, "stacked must be a pattern, a predicate"),
    ],
)
def test_bad_stacks(stacked: Any, error: Any, message: str) -> None:
    tx = ot.per_layer(optax.sgd(0.1), stacked)
    with pytest.raises(error, match=message):
        tx.init({"a": jnp.ones(()), "w": jnp.ones((2, 3))})


def test_a_state_of_other_stacks_is_refused() -> None:
    tx = ot.per_layer(ot.scale_by_lion(), "w")
    state = tx.init({"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match=r"state.*\(3, 2\).*\(4, 2\)"):
        tx.update({"w": jnp.ones((4, 2))}, state, {"w": jnp.ones((4, 2))})
    with pytest.raises(ValueError, match="per_layer got an update of shape"):
        tx.update({"w": jnp.ones((4, 2))}, state, {"w": jnp.ones((3, 2))})
    with pytest.raises(TypeError, match="inner must be an optax"):
        ot.per_layer(cast(Any, 3), "w")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "make",
    [
        lambda: optax.clip_by_global_norm(1.0),
        lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
        lambda: optax.chain(optax.adam(0.1), optax.normalize_by_update_norm()),
    ],
    ids=["clip", "if_finite", "normalize"],
)
def test_layers_of_a_single_stack_are_not_taken_together(make: Any) -> None:
    with pytest.raises(ValueError, match="depends on 'layers of another layer'"):
        ot.per_layer(make(), "layers").init({"layers": jnp.ones((3, 4, 5))})


def test_an_argument_that_makes_inner_mix_tensors_is_found_out() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        if "value" not in extra:
            return updates, state
        total = sum(leaf.sum() for leaf in jax.tree.leaves(updates))
        return jax.tree.map(lambda u: u * total * extra["value"], updates), state

    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
    tx = ot.per_layer(_stateless(update), "")
    tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="its update at 'a' depends on 'b'"):
        tx.update(params, tx.init(params), params, value=jnp.ones(()))


def test_an_argument_laid_out_like_the_parameters_is_refused() -> None:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        curved = extra.get("curvature", updates)
        return jax.tree.map(lambda u, c: u * c, updates, curved), state

    params = {"w": jnp.ones((3, 4, 4))}
    tx = ot.per_layer(_stateless(update), "w")
    with (
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ValueError, match=r"of shape \(3, 4, 4\) for a tensor of shape"),
    ):
        tx.update(params, tx.init(params), params, curvature=params)


def test_an_inner_that_changes_its_structure_is_refused() -> None:
    drops = lambda updates, state, params=None: ({"a": updates["a"]}, state)
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((3, 2))}
    tx = ot.per_layer(_stateless(drops), "")
    with pytest.raises(ValueError, match="inner changes the structure of its updates"):
        tx.update(params, tx.init(params), params)
