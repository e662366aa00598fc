"""Step time and temporary memory of dropout in front of AdamW, against AdamW alone."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

import optaxtricks as ot

from . import harness


def bernoulli_per_leaf(keep_rate: float) -> optax.GradientTransformation:
    """Gradient dropout as one would write it by hand: a threefry draw for each leaf."""

    def init(params: optax.Params) -> jax.Array:
        del params
        return jax.random.key_data(jax.random.key(0))

    def update(updates, state, params=None):
        del params
        after, now = jax.random.split(jax.random.wrap_key_data(state))
        keys = optax.tree.split_key_like(now, updates)
        drop = lambda g, key: jnp.where(
            jax.random.bernoulli(key, keep_rate, g.shape), g / keep_rate, 0.0
        )
        return jax.tree.map(drop, updates, keys), jax.random.key_data(after)

    return optax.GradientTransformation(init, update)


def main(argv: Sequence[str] | None = None) -> None:
    """Compares one step of each side on the same tree."""
    options = harness.arguments(__doc__, argv)
    shapes = harness.SIZES[options.size]
    adamw = optax.adamw(1e-3)
    drop = lambda **how: optax.chain(ot.gradient_dropout(0.3, key=0, **how), adamw)
    sides = {
        "adamw": adamw,
        "gradient_dropout element": drop(),
        "gradient_dropout row": drop(granularity="row"),
        "gradient_dropout leaf": drop(granularity="leaf"),
        "gradient_dropout gaussian": drop(distribution="gaussian"),
        "update_dropout element": optax.chain(adamw, ot.update_dropout(0.3, key=0)),
        "jax.random.bernoulli per leaf": optax.chain(bernoulli_per_leaf(0.3), adamw),
    }
    steps = {name: harness.TrainStep(tx, shapes) for name, tx in sides.items()}
    seconds = harness.alternate(steps, windows=3 if options.size == "tiny" else 15)
    rows = [
        {
            "side": name,
            "ms": 1e3 * seconds[name],
            "ratio to adamw": seconds[name] / seconds["adamw"],
            "temp MB": steps[name].temp_bytes / 1e6,
        }
        for name in sides
    ]
    harness.publish("bench_step", rows, options)


if __name__ == "__main__":
    main()
