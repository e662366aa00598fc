"""Step time and temporary memory of a watched optimizer, against the bare one.

Ahead of the optimizer a monitor reads the gradients once more. Behind it, it needs the
updates, of which the bare step makes no array: on a CPU, XLA then writes one.
`optax.monitor` is no side here: its state changes its structure at the first update,
which a compiled step does not survive.
"""

from collections.abc import Sequence

import optax

import optaxtricks as ot

from . import harness

LABELS = ot.label_by_path(
    {"^embeddings": "embeddings", "(query|key|value|output)": "attention"},
    default="rest",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Compares one step of each side on the same tree."""
    options = harness.arguments(__doc__, argv)
    shapes = harness.SIZES[options.size]
    rows = []
    for name, base in {"adamw": optax.adamw(1e-3), "ot.lion": ot.lion(1e-4)}.items():
        watch = ot.monitor_groups(LABELS)
        sides = {
            name: base,
            f"monitor_groups, {name}": optax.chain(watch, base),
            f"{name}, monitor_groups": optax.chain(base, watch),
        }
        steps = {side: harness.TrainStep(tx, shapes) for side, tx in sides.items()}
        windows = 3 if options.size == "tiny" else 15
        seconds = harness.alternate(steps, windows=windows)
        rows += [
            {
                "side": side,
                "ms": 1e3 * seconds[side],
                "ratio to bare": seconds[side] / seconds[name],
                "temp MB": steps[side].temp_bytes / 1e6,
            }
            for side in sides
        ]
    harness.publish("bench_monitor", rows, options)


if __name__ == "__main__":
    main()
