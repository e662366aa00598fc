"""Bytes of optimizer state, step time and temporary memory under an entry mask."""

from collections.abc import Sequence

import optax

import optaxtricks as ot

from . import harness, masks


def main(argv: Sequence[str] | None = None) -> None:
    """Compares AdamW with keep_entries, child_tuning_d and compact_entries."""
    options = harness.arguments(__doc__, argv)
    shapes = harness.SIZES[options.size]
    adamw = optax.adamw(1e-3)
    sides = {"adamw": adamw}
    for kept in (0.2, 0.005):
        mask = masks.entries(shapes, kept)
        sides[f"keep_entries, adamw: {kept:.1%}"] = optax.chain(
            ot.keep_entries(mask), adamw
        )
        sides[f"child_tuning_d: {kept:.1%}"] = ot.child_tuning_d(adamw, mask)
        sides[f"compact_entries: {kept:.1%}"] = ot.compact_entries(adamw, mask)
    sides["compact_entries: 20.0% in tiles"] = ot.compact_entries(
        adamw, masks.tiles(shapes, 0.2)
    )
    steps = {name: harness.TrainStep(tx, shapes) for name, tx in sides.items()}
    seconds = harness.alternate(steps, windows=3 if options.size == "tiny" else 9)
    dense = harness.tree_bytes(steps["adamw"].state)
    rows = [
        {
            "side": name,
            "state MB": harness.tree_bytes(step.state) / 1e6,
            "state / adamw": harness.tree_bytes(step.state) / dense,
            "ms": 1e3 * seconds[name],
            "time / adamw": seconds[name] / seconds["adamw"],
            "temp MB": step.temp_bytes / 1e6,
        }
        for name, step in steps.items()
    ]
    harness.publish("bench_state", rows, options)


if __name__ == "__main__":
    main()
