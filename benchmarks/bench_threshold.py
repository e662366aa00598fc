"""Time and memory of the exact global threshold, against one sort of all scores."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optaxtricks as ot

from . import harness

SHAPES = {
    "tiny": [(64, 32), (32,)],
    "full": [(30000, 512), *[(512, 2048)] * 16, *[(512,)] * 32],
}
"""`full` has 32.2 million scores."""


def main(argv: Sequence[str] | None = None) -> None:
    """Compares the mask with a sort, and with the sort and a mask made from it."""
    options = harness.arguments(__doc__, argv)
    rng = np.random.default_rng(0)
    scores = [
        jnp.square(jnp.asarray(rng.standard_normal(shape, np.float32)))
        for shape in SHAPES[options.size]
    ]
    count = sum(leaf.size for leaf in scores) // 5
    together = lambda tree: jnp.concatenate([leaf.ravel() for leaf in tree])

    def by_sorting(tree: Any) -> Any:
        threshold = jnp.sort(together(tree))[-count]
        return [leaf >= threshold for leaf in tree]

    compiled = {
        "jnp.sort": jax.jit(lambda tree: jnp.sort(together(tree))),
        "sort, then mask": jax.jit(by_sorting),
    }
    compiled = {name: f.lower(scores).compile() for name, f in compiled.items()}
    mask = lambda **how: lambda: ot.top_fraction_mask(scores, 0.2, **how)
    sides: dict[str, Callable[[], Any]] = {
        "exact": mask(),
        "percentile": mask(rule="percentile"),
        **{name: (lambda f=f: f(scores)) for name, f in compiled.items()},
    }
    seconds = harness.alternate(sides, windows=3, warm_up=1)
    rows = [
        {
            "side": name,
            "million scores": sum(leaf.size for leaf in scores) / 1e6,
            "ms": 1e3 * seconds[name],
            "sort / side": seconds["jnp.sort"] / seconds[name],
        }
        for name in sides
    ]
    for row in rows:
        if row["side"] in compiled:
            row["temp MB"] = harness.temp_bytes(compiled[row["side"]]) / 1e6
    harness.publish("bench_threshold", rows, options)


if __name__ == "__main__":
    main()
