"""The one table of transformations that the contract tests run over.

A new transformation needs one new row. What it cannot do is a field of its row, so no
test asks for a name.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

from .problems import entry_mask, row_mask, small_tree

ALL_DTYPES = ("bfloat16", "float16", "float32", "float64", "complex64")
REAL_DTYPES = ALL_DTYPES[:-1]


@dataclasses.dataclass(frozen=True)
class Case:
    """A public factory with arguments, and what may be asked of its result.

    Attributes:
      factory: the public function.
      arguments: from parameters, the keyword arguments; fresh arrays at every call.
      inject: names of numeric arguments that `optax.inject_hyperparams` may replace.
      params: from a dtype, parameters the transformation is at home with.
      extra_args: from parameters, extra arguments that `update` cannot do without.
      dtypes: the dtypes of parameters it accepts.
      whole_numbers: it accepts integer leaves.
      elementwise: an entry of the update depends on that entry's own history alone,
        so no device needs to hear from another.
      exchange: what devices tell each other where that is not so: "scalars", "rows" (a
        number or a bit for each row too), "leaves", or after all "nothing"; see
        `tests/collectives.py`.
      reads_state: every part of the state decides on the next step; what does not,
        a compiled step drops, and so cannot donate.
      param_shaped: what the state holds for a parameter has the parameter's shape.
      ulps: how far compiled and eager arithmetic may differ.
      promotion: JAX's dtype promotion; Optax's own Adam needs "standard".
      widens: updates of bfloat16 and float16 leaves come out as float32; of all others,
        here and elsewhere, they keep their dtype.
      by_structure: a part of it, Optax's own, wants the containers of `init` again.
      slow: a variant of another row, which some contract tests take up among the slow
        ones.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    arguments: Callable[[Any], dict[str, Any]] = lambda params: {}
    inject: tuple[str, ...] = ()
    params: Callable[[Any], Any] = small_tree
    extra_args: Callable[[Any], dict[str, Any]] = lambda params: {}
    dtypes: tuple[str, ...] = ALL_DTYPES
    whole_numbers: bool = False
    elementwise: bool = True
    exchange: str = "scalars"
    reads_state: bool = True
    param_shaped: bool = True
    ulps: int = 0
    promotion: str = "strict"
    widens: bool = False
    by_structure: bool = False
    slow: bool = False

    def make(self, params: Any) -> optax.GradientTransformationExtraArgs:
        """A fresh transformation for parameters laid out like these."""
        return self.factory(**self.arguments(params))

    def as_updates(self, params: Any) -> Any:
        """Something laid out as the updates of these parameters."""
        narrow = (jnp.bfloat16, jnp.float16) if self.widens else ()
        wide = lambda leaf: leaf.astype(jnp.float32) if leaf.dtype in narrow else leaf
        return jax.tree.map(wide, params)


def _has_rows(path: str, leaf: Any) -> bool:
    """A selector that every tree of more than scalars has leaves for."""
    return jnp.ndim(leaf) > 0


def _is_matrix(path: str, leaf: Any) -> bool:
    """A selector of some leaves, not all, of every tree."""
    return jnp.ndim(leaf) > 1


def _by_rank(tree: Any) -> Any:
    """Labels that every tree has: one for scalars, one for the rest."""
    return jax.tree.map(lambda leaf: "rest" if jnp.ndim(leaf) else "scalars", tree)


def _by_rows(tree: Any) -> Any:
    """Labels for which leaves of equally many rows come together."""
    named = lambda leaf: f"{leaf.shape[0]} rows" if jnp.ndim(leaf) else "scalars"
    return jax.tree.map(named, tree)


def _stack_of(params: Any) -> Callable[[str, Any], bool]:
    """A selector of the leaves with the fewest rows, of which there are some more."""
    rows = [leaf.shape[0] for leaf in jax.tree.leaves(params) if jnp.ndim(leaf)]
    fewest = min(row for row in rows if row)
    return lambda path, leaf: jnp.shape(leaf)[:1] == (fewest,)


def _rates_of_layers(params: Any) -> dict[str, Any]:
    """A vector for the stack, and a number for the rest."""
    is_stack, rates = _stack_of(params), {}

    def visit(path: str, leaf: Any) -> bool:
        if is_stack(path, leaf):
            rates[f"^{re.escape(path)}$"] = 0.7 ** np.arange(leaf.shape[0])
        return True

    ot.select(params, visit)
    return {**rates, "": 0.3}


def _narrow_tree(dtype: Any) -> Any:
    """The small tree, in bfloat16 where float32 is asked for."""
    return small_tree(jnp.bfloat16 if dtype == jnp.float32 else dtype)


def _inner() -> optax.GradientTransformationExtraArgs:
    """An optimizer with a state, whose products are exact, fused or not."""
    return optax.sgd(0.5, momentum=0.5)


def _per_tensor() -> optax.GradientTransformationExtraArgs:
    """An optimizer that draws a number and takes a sum for every tensor."""
    skip = ot.update_dropout(0.5, key=8, granularity="leaf")
    return ot.shrink_nonfinite(optax.chain(skip, _inner()))


CASES: dict[str, Case] = {
    "gradient_dropout": Case(
        ot.gradient_dropout,
        lambda params: {"keep_rate": 0.5, "key": 0},
        inject=("keep_rate",),
    ),
    "gradient_dropout_schedule": Case(
        ot.gradient_dropout,
        lambda params: {
            "keep_rate": lambda step: jnp.where(step < 1, 0.75, 0.5),
            "key": np.asarray([1, 2], np.uint32),
        },
        slow=True,
    ),
    "gradient_dropout_row": Case(
        ot.gradient_dropout,
        lambda params: {"keep_rate": 0.5, "key": 1, "granularity": "row"},
        inject=("keep_rate",),
        slow=True,
    ),
    "gradient_dropout_gaussian": Case(
        ot.gradient_dropout,
        lambda params: {"keep_rate": 0.5, "key": 2, "distribution": "gaussian"},
        inject=("keep_rate",),
        ulps=4,
        slow=True,
    ),
    "update_dropout": Case(
        ot.update_dropout,
        lambda params: {"keep_rate": 0.3, "key": jax.random.key(3)},
        inject=("keep_rate",),
        slow=True,
    ),
    "update_dropout_leaf": Case(
        ot.update_dropout,
        lambda params: {
            "keep_rate": 0.9,
            "key": jax.random.key_data(jax.random.key(6)),
            "granularity": "leaf",
            "rescale": False,
        },
        inject=("keep_rate",),
    ),
    "keep_entries": Case(
        ot.keep_entries,
        lambda params: {"mask": entry_mask(params)},
    ),
    "keep_entries_rescaled": Case(
        ot.keep_entries,
        lambda params: {"mask": entry_mask(params), "rescale": True},
        slow=True,
    ),
    "keep_entries_broadcast": Case(
        ot.keep_entries,
        lambda params: {"mask": row_mask(params), "rescale": True},
        slow=True,
    ),
    "compact_entries": Case(
        ot.compact_entries,
        lambda params: {"inner": _inner(), "mask": entry_mask(params)},
        elementwise=False,
        exchange="leaves",
        param_shaped=False,
    ),
    "compact_entries_broadcast": Case(
        ot.compact_entries,
        lambda params: {"inner": _inner(), "mask": row_mask(params)},
        elementwise=False,
        exchange="leaves",
        param_shaped=False,
        slow=True,
    ),
    "child_tuning_d": Case(
        ot.child_tuning_d,
        lambda params: {"inner": _inner(), "mask": entry_mask(params)},
    ),
    "child_tuning_d_decayed": Case(
        ot.child_tuning_d,
        lambda params: {
            "inner": optax.chain(optax.add_decayed_weights(0.5), _inner()),
            "mask": entry_mask(params),
            "decay_frozen": True,
        },
        slow=True,
    ),
    "child_tuning_d_broadcast": Case(
        ot.child_tuning_d,
        lambda params: {"inner": _inner(), "mask": row_mask(params)},
        slow=True,
    ),
    "child_tuning_f": Case(
        ot.child_tuning_f,
        lambda params: {"inner": _inner(), "keep_rate": 0.7, "key": 5},
        inject=("keep_rate",),
        slow=True,
    ),
    "ladder": Case(
        ot.ladder,
        lambda params: {"inner": _inner(), "side": _is_matrix},
        # Under Auto axes XLA replicates the zeros, unless a parameter is added to them.
        elementwise=False,
        exchange="nothing",
    ),
    "ladder_decayed": Case(
        ot.ladder,
        lambda params: {
            "inner": optax.chain(optax.add_decayed_weights(0.5), _inner()),
            "side": _is_matrix,
        },
        elementwise=False,
        exchange="nothing",
        slow=True,
    ),
    "scale_by_lion": Case(
        ot.scale_by_lion, inject=("b1", "b2"), dtypes=REAL_DTYPES, ulps=4
    ),
    "scale_by_lion_relaxed": Case(
        ot.scale_by_lion,
        lambda params: {
            "mu_dtype": jnp.bfloat16,
            "exponent": lambda step: jnp.where(step < 1, 0.25, 0.5),
            "dead_zone": 0.05,
            "cautious": True,
        },
        inject=("b1", "b2", "dead_zone"),
        dtypes=REAL_DTYPES,
        ulps=4,
        slow=True,
    ),
    "scale_by_tiger": Case(
        ot.scale_by_tiger,
        inject=("beta",),
        dtypes=REAL_DTYPES,
        elementwise=False,
        ulps=4,
    ),
    "scale_by_tiger_window": Case(
        ot.scale_by_tiger,
        lambda params: {
            "accumulate_steps": 2,
            "exponent": lambda window: jnp.where(window < 1, 0.25, 0.5),
            "dead_zone": 0.05,
            "skip_nonfinite": False,
        },
        inject=("beta", "dead_zone"),
        dtypes=REAL_DTYPES,
        ulps=4,
    ),
    "scale_by_param_rms": Case(
        ot.scale_by_param_rms,
        lambda params: {"floor": 1.0, "rows": _has_rows},
        inject=("floor",),
        dtypes=REAL_DTYPES,
        elementwise=False,
        exchange="rows",
        ulps=4,
    ),
    "shrink_nonfinite": Case(
        ot.shrink_nonfinite,
        lambda params: {"inner": _inner(), "to_one": _has_rows},
        elementwise=False,
    ),
    "at_window_end": Case(
        ot.at_window_end,
        lambda params: {"inner": _inner(), "accumulate_steps": 2},
    ),
    "lazy_rows": Case(
        ot.lazy_rows,
        lambda params: {"inner": _inner(), "tables": _has_rows},
        elementwise=False,
        exchange="rows",
    ),
    "lazy_rows_frozen": Case(
        ot.lazy_rows,
        lambda params: {
            "inner": _inner(),
            "tables": _has_rows,
            "moments": "freeze",
        },
        elementwise=False,
        exchange="rows",
        slow=True,
    ),
    "lazy_rows_window": Case(
        ot.lazy_rows,
        lambda params: {
            "inner": ot.at_window_end(_inner(), accumulate_steps=2),
            "tables": _has_rows,
        },
        elementwise=False,
        exchange="rows",
        param_shaped=False,
        slow=True,
    ),
    "magma": Case(
        ot.magma,
        lambda params: {"inner": _inner(), "key": 7},
        inject=("keep_rate", "temperature", "b1", "smoothing"),
        elementwise=False,
        ulps=4,
    ),
    "monitor_groups": Case(
        ot.monitor_groups,
        lambda params: {"labels": _by_rank},
        elementwise=False,
        exchange="rows",
        reads_state=False,
        ulps=4,
    ),
    "per_layer": Case(
        ot.per_layer,
        lambda params: {"inner": _per_tensor(), "stacked": _has_rows},
        elementwise=False,
        exchange="rows",
    ),
    "monitor_groups_stacked": Case(
        ot.monitor_groups,
        lambda params: {"labels": _by_rows, "stacked": _has_rows},
        elementwise=False,
        exchange="rows",
        reads_state=False,
        ulps=4,
        slow=True,
    ),
    "round_stochastically": Case(
        ot.round_stochastically,
        lambda params: {"key": 9},
        params=_narrow_tree,
        promotion="standard",
        widens=True,
    ),
    "scale_by_path": Case(
        ot.scale_by_path,
        lambda params: {"factors": {"": 0.7}},
    ),
    "scale_by_path_schedule": Case(
        ot.scale_by_path,
        lambda params: {
            "factors": {"": lambda step: jnp.where(step < 1, 0.3, 1.7)},
        },
        slow=True,
    ),
    "scale_by_path_stacked": Case(
        ot.scale_by_path,
        lambda params: {
            "factors": _rates_of_layers(params),
            "stacked": _stack_of(params),
        },
        slow=True,
    ),
    "scale_by_depth": Case(
        ot.scale_by_depth,
        lambda params: {
            "decay": 0.7,
            "stacked": (is_stack := _stack_of(params)),
            "first": lambda path, leaf: (
                _has_rows(path, leaf) and not is_stack(path, leaf)
            ),
        },
        inject=("decay", "gap"),
        ulps=4,
    ),
    "ema_params": Case(
        ot.ema_params,
        lambda params: {"decay": 0.9},
        inject=("decay",),
        whole_numbers=True,
        ulps=4,
    ),
    "ema_params_debiased": Case(
        ot.ema_params,
        lambda params: {
            "decay": lambda step: jnp.where(step < 1, 0.5, 0.75),
            "dtype": jnp.float32,
            "debias": True,
            "every": 2,
        },
        whole_numbers=True,
        ulps=4,
        slow=True,
    ),
    "lion": Case(
        ot.lion,
        lambda params: {"learning_rate": 0.5},
        inject=("learning_rate", "b1", "b2", "weight_decay"),
        dtypes=REAL_DTYPES,
        ulps=4,
    ),
    "tiger": Case(
        ot.tiger,
        lambda params: {
            "learning_rate": 0.5,
            "accumulate_steps": 2,
            "shrink_to_one": _has_rows,
        },
        inject=("learning_rate", "beta", "weight_decay", "rms_floor"),
        dtypes=REAL_DTYPES,
        elementwise=False,
        ulps=4,
    ),
    "two_timescale": Case(
        ot.two_timescale,
        lambda params: {
            "inner": optax.trace(0.5),
            "learning_rate": 0.5,
            "fast": _is_matrix,
            "fast_learning_rate": 0.25,
        },
        inject=("learning_rate", "fast_learning_rate"),
    ),
    "mixed_sign": Case(
        ot.mixed_sign,
        lambda params: {"learning_rate": 0.5, "embeddings": _has_rows},
        inject=("learning_rate",),
        dtypes=REAL_DTYPES,
        ulps=4,
        promotion="standard",
        by_structure=True,
    ),
}
