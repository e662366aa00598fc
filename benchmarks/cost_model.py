"""Bytes of state and of memory traffic for every parameter, and the time they take.

A step of an optimizer does little arithmetic: its time is the bytes that it must move
over the memory's bandwidth. The least it can move is to read parameters, gradient and
state once and to write once what changes; where a number over a whole leaf or row must
be known first, something is read again. All is for float32 parameters and gradients,
buffers donated, each device holding its own share and nothing else.

    python -m benchmarks.cost_model [--chip NAME]
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optaxtricks as ot

BANDWIDTH = {"H100 SXM": 3.35e12, "TPU v5p": 2.765e12}  # bytes a second, data sheets
MODELS = {"7B on 8": 7e9 / 8, "70B on 64": 70e9 / 64}  # parameters on each chip
FLOAT = 4.0
# A billion parameters in few leaves, as a leaf's size costs no compilation.
BILLION = {
    "embedding": (131072, 4096),
    "kernel_0": (8192, 16384),
    "kernel_1": (16384, 8192),
    "kernel_2": (8192, 16384),
    "kernel_3": (16384, 8192),
    "bias": (16384,),
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a transformation costs, in bytes for every parameter.

    Attributes:
      make: from a mask of entries, the transformation.
      state: bytes of state.
      fixed: how much of the state only `init` writes.
      again: bytes that are read a second time, and why is said in `note`.
      trained: the fraction of the parameters that a step touches at all.
      note: what the numbers leave out.
    """

    make: Callable[[Any], optax.GradientTransformation]
    state: float
    fixed: float = 0.0
    again: float = 0.0
    trained: float = 1.0
    note: str = ""

    @property
    def reads(self) -> float:
        """Parameters, gradient and state, once."""
        return 2 * FLOAT * self.trained + self.state

    @property
    def writes(self) -> float:
        """Parameters and what changes of the state, once."""
        return FLOAT * self.trained + self.state - self.fixed

    @property
    def moved(self) -> float:
        """All traffic."""
        return self.reads + self.writes + self.again


def _adamw() -> optax.GradientTransformation:
    return optax.adamw(1e-3)


def _lion() -> optax.GradientTransformation:
    return ot.lion(1e-4)


BIT = 1 / 8
COSTS: dict[str, Cost] = {
    "optax.sgd": Cost(lambda mask: optax.sgd(1e-3), 0),
    "optax.adamw": Cost(lambda mask: _adamw(), 2 * FLOAT),
    "optax.MultiSteps(adamw)": Cost(
        lambda mask: optax.MultiSteps(_adamw(), 4).gradient_transformation(),
        3 * FLOAT,
        note="a step that ends a window",
    ),
    "gradient_dropout, adamw": Cost(
        lambda mask: optax.chain(ot.gradient_dropout(0.3, key=0), _adamw()),
        2 * FLOAT,
        note="the mask is computed, not stored",
    ),
    "adamw, update_dropout": Cost(
        lambda mask: optax.chain(_adamw(), ot.update_dropout(0.3, key=0)), 2 * FLOAT
    ),
    "keep_entries, adamw": Cost(
        lambda mask: optax.chain(ot.keep_entries(mask), _adamw()), 2 * FLOAT + BIT, BIT
    ),
    "child_tuning_d(adamw)": Cost(
        lambda mask: ot.child_tuning_d(_adamw(), mask), 2 * FLOAT + BIT, BIT
    ),
    "lion": Cost(lambda mask: _lion(), FLOAT),
    "lion, bfloat16 momentum": Cost(
        lambda mask: ot.lion(1e-4, mu_dtype=jnp.bfloat16), FLOAT / 2
    ),
    "tiger": Cost(
        lambda mask: ot.tiger(1e-3, accumulate_steps=4),
        FLOAT,
        again=2 * FLOAT,
        note="the gradient for NaN, the parameter for its RMS; no accumulator",
    ),
    "per_layer(tiger)": Cost(
        lambda mask: ot.per_layer(ot.tiger(1e-3, accumulate_steps=4), "kernel"),
        FLOAT,
        again=2 * FLOAT,
        note="as tiger: a number a layer where that has one a leaf",
    ),
    "tiger, plain": Cost(
        lambda mask: ot.tiger(1e-3, accumulate_steps=4, relative=False, shrink=None),
        FLOAT,
    ),
    "mixed_sign, half of it embeddings": Cost(
        lambda mask: ot.mixed_sign(1e-4, embeddings="embedding"), 1.5 * FLOAT
    ),
    "lazy_rows(lion)": Cost(
        lambda mask: ot.lazy_rows(_lion(), tables="embedding"),
        FLOAT,
        again=FLOAT / 2,
        note="the table's gradient for its rows; the table is half of it",
    ),
    "shrink_nonfinite(lion)": Cost(
        lambda mask: ot.shrink_nonfinite(_lion()), FLOAT, again=FLOAT
    ),
    "magma(lion)": Cost(
        lambda mask: ot.magma(_lion(), key=0),
        2 * FLOAT,
        again=2 * FLOAT,
        note="gradient and average for their cosine",
    ),
    "ladder(lion), an eighth trained": Cost(
        lambda mask: ot.ladder(_lion(), side="kernel_3"),
        FLOAT / 8,
        trained=1 / 8,
        note="the frozen rest has neither gradient nor state",
    ),
    "lion, ema_params": Cost(
        lambda mask: optax.chain(_lion(), ot.ema_params(0.999)), 2 * FLOAT
    ),
    "lion, ema_params in bfloat16": Cost(
        lambda mask: optax.chain(_lion(), ot.ema_params(0.999, dtype=jnp.bfloat16)),
        1.5 * FLOAT,
    ),
    "lion, round_stochastically": Cost(
        lambda mask: optax.chain(_lion(), ot.round_stochastically(key=0)),
        FLOAT,
        note="of bfloat16 parameters, half of it all",
    ),
    "scale_by_path, lion": Cost(
        lambda mask: optax.chain(_lion(), ot.scale_by_path({"kernel": 0.5})), FLOAT
    ),
    "monitor_groups, lion": Cost(
        lambda mask: optax.chain(ot.monitor_groups(_one_label), _lion()),
        FLOAT,
        note="fused into the loop, as on a GPU or TPU",
    ),
}


def _one_label(tree: Any) -> Any:
    return jax.tree.map(lambda _: "all", tree)


def compact_state(kept: float) -> float:
    """State bytes of `compact_entries(adamw)`: two moments and a place, if kept.

    A place takes 1, 2 or 4 bytes, by the size of blocks, and a fifth may be padding.
    """
    return kept * (2 * FLOAT + 4)


def abstract_params() -> dict[str, jax.ShapeDtypeStruct]:
    """A billion parameters that take no memory."""
    return {
        path: jax.ShapeDtypeStruct(shape, jnp.float32)
        for path, shape in BILLION.items()
    }


def abstract_state(cost: Cost, params: Any) -> Any:
    """Shapes and dtypes of a transformation's state."""
    masks = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, bool), params)
    return jax.eval_shape(lambda p, m: cost.make(m).init(p), params, masks)


def milliseconds(cost: Cost, *, chip: str, params: float) -> float:
    """The least time of a step on a chip that holds so many parameters."""
    return 1e3 * cost.moved * params / BANDWIDTH[chip]


def rows(chips: Sequence[str] = tuple(BANDWIDTH)) -> Iterator[list[str]]:
    """The heads of the table, then a row for every chain."""
    columns = [(chip, model) for chip in chips for model in MODELS]
    heads = [f"{model} {chip}, ms" for chip, model in columns]
    yield ["Chain", "State, B", "Moved, B", *heads, "Note"]
    for name, cost in COSTS.items():
        times = [
            f"{milliseconds(cost, chip=chip, params=MODELS[model]):.1f}"
            for chip, model in columns
        ]
        yield [f"`{name}`", f"{cost.state:g}", f"{cost.moved:g}", *times, cost.note]
    for kept in (0.2, 0.005):
        name = f"`compact_entries(adamw)`, {kept:.1%} kept"
        yield [name, f"{compact_state(kept):g}", *[""] * (len(heads) + 2)]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chip", choices=tuple(BANDWIDTH), nargs="+")
    heads, *body = rows(parser.parse_args(argv).chip or tuple(BANDWIDTH))
    for cells in (heads, ["---"] * len(heads), *body):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
