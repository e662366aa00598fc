"""Lazy Adam on a row-sparse gradient against the dense step, over table sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

from . import harness

WIDTH = {"tiny": 8, "full": 512}
LOOKUPS = {"tiny": 16, "full": 4096}
TABLES = {"tiny": (64, 128), "full": (32_768, 131_072, 524_288)}
DENSE = {"tiny": 128, "full": 131_072}


class RowStep:
    """A compiled step of a table from the cotangents of its looked-up rows."""

    def __init__(self, tx: Any, gradient: Callable[..., Any], rows: int, size: str):
        rng, width, count = np.random.default_rng(0), WIDTH[size], LOOKUPS[size]
        # Zipf's law, as words have it: some ids come again and again.
        ids = (rng.zipf(1.2, count) - 1) % rows
        draw = lambda shape: jnp.asarray(rng.standard_normal(shape, np.float32))
        self.inputs = jnp.asarray(ids, jnp.int32), draw((count, width))
        self.params = {"table": jnp.full((rows, width), 0.1, jnp.float32)}
        self.state = tx.init(self.params)

        def step(params: Any, state: Any, ids: jax.Array, rows: jax.Array) -> Any:
            grads = {"table": gradient(ids, rows, params["table"])}
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(step, donate_argnums=(0, 1))
        self.compiled = jitted.lower(self.params, self.state, *self.inputs).compile()

    def __call__(self) -> Any:
        self.params, self.state = self.compiled(self.params, self.state, *self.inputs)
        return self.params


def sparse(ids: jax.Array, rows: jax.Array, table: jax.Array) -> Any:
    """The gradient as rows."""
    return ot.RowSparse.from_lookup(ids, rows, table.shape[0])


def dense(ids: jax.Array, rows: jax.Array, table: jax.Array) -> Any:
    """The gradient as autodiff makes it: a table of zeros, rows added."""
    return jnp.zeros_like(table).at[ids].add(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """One table for the dense sides, several for the sparse one."""
    options = harness.arguments(__doc__, argv)
    size, adam = options.size, optax.adam(1e-3)
    frozen = ot.lazy_rows(adam, tables="table", moments="freeze")
    plan = {f"RowSparse, {n} rows": (frozen, sparse, n) for n in TABLES[size]} | {
        f"dense adam, {DENSE[size]} rows": (adam, dense, DENSE[size]),
        f"dense lazy_rows, {DENSE[size]} rows": (frozen, dense, DENSE[size]),
    }
    steps = {name: RowStep(*how, size) for name, how in plan.items()}
    seconds = harness.alternate(steps, windows=3 if size == "tiny" else 15)
    base = seconds[f"dense adam, {DENSE[size]} rows"]
    rows = [
        {
            "side": name,
            "ms": 1e3 * seconds[name],
            "dense adam / side": base / seconds[name],
            "temp MB": harness.temp_bytes(steps[name].compiled) / 1e6,
        }
        for name in plan
    ]
    harness.publish("bench_rows", rows, options)


if __name__ == "__main__":
    main()
