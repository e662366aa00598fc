"""What a narrow momentum loses: signs and size against the float32 momentum.

Both see the same gradients: for each entry a mean of a tenth of its noise, so that a
momentum has something to find, at sizes that training has and at tiny ones. Columns:
the fraction of signs that differ from those of the float32 momentum, the distance of
the two momenta over the length of the wide one, and, of a quadratic that is minimised
from 1 on noisy gradients by steps that fall to 0, the root mean square distance from
the minimum that is left. Deterministic: nothing here is a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optaxtricks as ot

from . import harness

ENTRIES = {"tiny": 64, "full": 4096}
STEPS = {"tiny": 40, "full": 2000}
SIZES = (1.0, 1e-4, 1e-7)
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
METHODS: dict[str, tuple[Callable[..., Any], int]] = {
    "lion": (ot.scale_by_lion, 1),
    "lion, b2 0.999": (lambda **how: ot.scale_by_lion(b2=0.999, **how), 1),
    "tiger": (ot.scale_by_tiger, 1),
    "tiger, window of 8": (
        lambda **how: ot.scale_by_tiger(accumulate_steps=8, **how),
        8,
    ),
}


def run(tx: Any, size: float, entries: int, calls: int) -> tuple[Any, Any]:
    """All signs of a stream of gradients, and the last momentum."""
    mean = jax.random.normal(jax.random.key(0), (entries,)) / 10

    def call(state: Any, key: Any) -> tuple[Any, Any]:
        noise = jax.random.normal(key, (entries,))
        updates, state = tx.update(size * (mean + noise), state)
        return state, updates

    keys = jax.random.split(jax.random.key(1), calls)
    state, signs = jax.lax.scan(call, tx.init(mean), keys)
    return signs, state.mu.astype(jnp.float32)


def left(tx: Any, size: float, entries: int, calls: int, window: int) -> Any:
    """The distance from the minimum of a quadratic after training on noise."""
    rate = optax.cosine_decay_schedule(2e-2, calls)

    def call(carry: Any, x: Any) -> tuple[Any, None]:
        params, state = carry
        key, step = x
        noise = jax.random.normal(key, (entries,))
        updates, state = tx.update(size * (params + noise), state, params)
        return (params - window * rate(step) * updates, state), None

    start = jnp.ones(entries)
    keys = jax.random.split(jax.random.key(2), calls)
    (params, _), _ = jax.lax.scan(
        call, (start, tx.init(start)), (keys, jnp.arange(calls))
    )
    return jnp.sqrt(jnp.mean(params**2))


def main(argv: Sequence[str] | None = None) -> None:
    """Every method, size of gradients and dtype."""
    options = harness.arguments(__doc__, argv)
    entries, calls = ENTRIES[options.size], STEPS[options.size]
    rows = []
    for name, (make, window) in METHODS.items():
        for size in SIZES:
            wide, exact = run(make(), size, entries, calls)
            for dtype in DTYPES:
                tx = make(mu_dtype=dtype)
                signs, mu = run(tx, size, entries, calls)
                ends = slice(window - 1, None, window)
                far = jnp.linalg.norm(mu - exact) / jnp.linalg.norm(exact)
                rows.append(
                    {
                        "method": name,
                        "gradients": size,
                        "momentum": jnp.dtype(dtype).name,
                        "signs that differ": float((signs != wide)[ends].mean()),
                        "distance": float(far),
                        "left": float(left(tx, size, entries, calls, window)),
                    }
                )
    harness.publish("bench_momentum", rows, options)


if __name__ == "__main__":
    main()
