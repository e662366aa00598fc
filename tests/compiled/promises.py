"""What a compiled step may cost, for every row of tests/cases.py.

A step reads each of its arrays once and writes each of its results once, so the bytes
that it moves are counted over those. What stands here is a promise to users: a row may
be bettered, and is worsened only with a reason.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optax

import optaxtricks as ot
from benchmarks.compiled.recipes import BASES
from benchmarks.compiled.steps import Program
from benchmarks.compiled.traffic import Exchange

Make = Callable[[Any], optax.GradientTransformation]


@dataclasses.dataclass(frozen=True)
class Promise:
    """Limits of one program.

    Attributes:
      base: from parameters, the optimizer that launches and arrays are compared with.
      reread: how many arrays of the parameters' size must be read a second time, as
        they are needed whole before they are used.
      more: bytes of arrays in and out besides the base's, over the parameters'; a bit
        for each entry is allowed to all.
      moved: bytes moved, over those of all arrays once and of `reread` once more.
      temporaries: bytes of main memory on a device, over the parameters'.
      launches: how many for each of the base's, and how many besides; no TPU counts
        them.
      registers: of a thread of a GPU's kernels; with more, memory waits.
      exchanges: how many collectives take all that devices tell each other; XLA merges
        those of one kind.
      side: rows and columns of the largest leaf; 8192 are so many that no part of it
        waits in a TPU's on-chip memory.
      on: what differs, by target, or by target and dtype.
    """

    base: Make = BASES["optax.sgd"]
    reread: int = 0
    more: float = 0.07
    moved: float = 1.02
    temporaries: float = 0.01
    launches: tuple[float, int] = (1.1, 6)
    registers: int = 224
    exchanges: int = 2
    side: int = 8192
    on: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def of(self, target: str, dtype: str) -> "Promise":
        """The promise for one target and dtype."""
        here = {**self.on.get(target, {}), **self.on.get(f"{target} {dtype}", {})}
        return dataclasses.replace(self, **here)

    def broken(
        self, one: Program, base: Program, allows: Callable[[Exchange], bool]
    ) -> Iterator[str]:
        """For each limit that a program exceeds, by how much and in which lines."""
        seen = one.traffic
        more = (seen.least - base.traffic.least) / one.params
        if more > self.more:
            yield _lines(f"arrays {more:.4f} > {self.more}", seen.heaviest())
        least = seen.least + self.reread * one.params
        if seen.moved > self.moved * least:
            figures = f"moved {seen.moved / least:.4f} > {self.moved}"
            yield _lines(figures, seen.heaviest())
        if one.temporaries > self.temporaries * one.params:
            figures = f"temporaries {one.temporaries / one.params:.4f}"
            yield _lines(f"{figures} > {self.temporaries}", seen.heaviest())
        unasked = [each.line for each in seen.exchanges if not allows(each)]
        if unasked:
            yield _lines("collectives", unasked)
        merged = list(dict.fromkeys(each.line for each in seen.exchanges))
        if len(merged) > self.exchanges:
            yield _lines(f"collectives {len(merged)} > {self.exchanges}", merged)
        if seen.host:
            yield _lines("host transfers", seen.host)
        if seen.loops:
            yield _lines("loops", [loop.line for loop in seen.loops])
        times, besides = self.launches
        most = times * base.traffic.launches + besides
        if seen.cycles is None and seen.launches > most:
            figures = f"launches {seen.launches} > {most:.0f}"
            yield _lines(figures, [work.line for work in seen.work])
        for word, kernels in {
            "spills": [kernel for kernel in one.kernels if kernel.spilled],
            "registers": [k for k in one.kernels if k.registers > self.registers],
        }.items():
            if kernels:
                yield _lines(word, list(map(str, kernels)))


def _lines(figures: str, lines: list[str]) -> str:
    more = [f"and {len(lines) - 12} more"] if len(lines) > 12 else []
    return "\n  ".join([figures, *(line[:240] for line in lines[:12]), *more])


def _momentum(params: Any) -> optax.GradientTransformation:
    """What rows of tests/cases.py are built on."""
    return optax.sgd(0.5, momentum=0.5)


def _window(params: Any) -> optax.GradientTransformation:
    return ot.at_window_end(_momentum(params), accumulate_steps=2)


# By kind: each entry by itself; a number for each tensor, which all must be read for
# before it is used; readings that ride in another pass.
ELEMENTWISE = Promise()
A_NUMBER_A_TENSOR = Promise(reread=1, launches=(1.5, 5))
READINGS = Promise(
    launches=(1.2, 14),
    exchanges=5,
    # XLA:TPU merges passes over numbers of one width, and sums are float32.
    on={"v5e:2x2 bfloat16": {"reread": 1}},
)
but = dataclasses.replace
# A float32 array more in the state, whatever the parameters are.
_with_average: Any = {
    "more": 2.07,
    "on": {f"{target} bfloat16": {"more": 4.07} for target in ("h100", "v5e:2x2")},
}
_on_momentum = but(ELEMENTWISE, base=_momentum)
_on_lion = but(ELEMENTWISE, base=BASES["optax.lion"])
# It pays for few entries: half are too many, but fit. A TPU handles them one by one,
# through temporaries of the leaf's size, and compiles that for minutes: what is held
# there is that none leaves its device.
_HALF_KEPT = Promise(
    _momentum,
    moved=1.6,
    temporaries=0.25,
    launches=(2.0, 8),
    on={"v5e:2x2": {"side": 256}},
)

PROMISES: dict[str, Promise] = {
    "gradient_dropout": ELEMENTWISE,
    "gradient_dropout_schedule": ELEMENTWISE,
    "gradient_dropout_row": ELEMENTWISE,
    "gradient_dropout_gaussian": ELEMENTWISE,
    "update_dropout": ELEMENTWISE,
    "update_dropout_leaf": ELEMENTWISE,
    "keep_entries": ELEMENTWISE,
    "keep_entries_rescaled": ELEMENTWISE,
    "keep_entries_broadcast": ELEMENTWISE,
    "compact_entries": _HALF_KEPT,
    "compact_entries_broadcast": but(_HALF_KEPT, launches=(2.0, 9)),
    "child_tuning_d": _on_momentum,
    "child_tuning_d_decayed": _on_momentum,
    "child_tuning_d_broadcast": _on_momentum,
    "child_tuning_f": _on_momentum,
    "ladder": _on_momentum,
    "ladder_decayed": _on_momentum,
    "scale_by_lion": _on_lion,
    "scale_by_lion_relaxed": _on_lion,
    "scale_by_tiger": but(A_NUMBER_A_TENSOR, base=_momentum),
    "scale_by_tiger_window": _on_momentum,
    "scale_by_param_rms": A_NUMBER_A_TENSOR,
    "shrink_nonfinite": but(A_NUMBER_A_TENSOR, base=_momentum),
    "at_window_end": _on_momentum,
    "lazy_rows": but(A_NUMBER_A_TENSOR, base=_momentum),
    "lazy_rows_frozen": but(A_NUMBER_A_TENSOR, base=_momentum),
    "lazy_rows_window": but(A_NUMBER_A_TENSOR, base=_window),
    "magma": but(A_NUMBER_A_TENSOR, base=_momentum, launches=(1.5, 8), **_with_average),
    "monitor_groups": READINGS,
    # Every row is a layer here, with readings of its own.
    "monitor_groups_stacked": but(
        READINGS, moved=1.06, temporaries=0.02, launches=(1.2, 24), exchanges=9
    ),
    "per_layer": but(A_NUMBER_A_TENSOR, base=_momentum, launches=(1.5, 8)),
    "round_stochastically": ELEMENTWISE,
    "scale_by_path": ELEMENTWISE,
    "scale_by_path_schedule": ELEMENTWISE,
    "scale_by_path_stacked": ELEMENTWISE,
    "scale_by_depth": ELEMENTWISE,
    "ema_params": but(ELEMENTWISE, **_with_average),
    "ema_params_debiased": but(ELEMENTWISE, launches=(1.1, 8), **_with_average),
    "lion": _on_lion,
    # The gradient for whether it is finite, the parameter for its root mean square.
    "tiger": but(A_NUMBER_A_TENSOR, base=_window, reread=2),
    "two_timescale": _on_momentum,
    # Adam's moments are float32.
    "mixed_sign": but(ELEMENTWISE, base=BASES["optax.adamw"], on=_with_average["on"]),
}
"""By the names of `tests.cases.CASES`."""

# Rows that are looked up: three copies of them, whatever the table.
_LOOKED_UP = Promise(moved=0.09, temporaries=3.05 * 4096 / 131072, launches=(1.0, 12))
# Four leaves in a kernel.
_RANDOM = but(ELEMENTWISE, registers=128)
_COMPACT = Promise(moved=1.1, temporaries=0.25, launches=(2.0, 5))

RECIPE_PROMISES: dict[tuple[str, str, str], Promise] = {
    ("gradient_dropout, adamw", "h100", "tree"): _RANDOM,
    ("adamw, update_dropout", "h100", "tree"): _RANDOM,
    ("lion", "h100", "tree"): ELEMENTWISE,
    ("tiger", "h100", "tree"): but(A_NUMBER_A_TENSOR, reread=2),
    ("shrink_nonfinite(lion)", "h100", "tree"): A_NUMBER_A_TENSOR,
    ("magma(lion)", "h100", "tree"): but(
        A_NUMBER_A_TENSOR, launches=(1.6, 5), more=2.07
    ),
    ("monitor_groups, adamw", "h100", "tree"): but(READINGS, launches=(1.2, 10)),
    ("compact_entries(adamw), 20.0%", "h100", "matrix"): _COMPACT,
    ("compact_entries(adamw), 0.5%", "h100", "matrix"): _COMPACT,
    ("compact_entries(adamw), 20.0% in tiles", "h100", "matrix"): but(
        ELEMENTWISE, launches=(2.0, 5)
    ),
    # XLA:TPU looks tiles up into an array, and adds that one afterwards.
    ("compact_entries(adamw), 20.0% in tiles", "v5e:2x2", "matrix"): Promise(
        moved=1.85, temporaries=1.01
    ),
    ("lazy_rows(adam), looked-up rows", "h100", "table"): _LOOKED_UP,
    ("lazy_rows(adam), looked-up rows", "v5e:2x2", "table"): but(
        _LOOKED_UP, moved=0.45, temporaries=0.01
    ),
}
"""By the names of `RECIPES`, by target and size: many leaves, few entries, few rows."""
