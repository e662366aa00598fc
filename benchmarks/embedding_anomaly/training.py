"""Training one variant, and measuring its word table on the way."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

from ..harness import tree_bytes
from . import model
from .text import Text
from .variants import DECAY, Variant

EVALUATED_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Size:
    """How large model, text and training are.

    Attributes:
      every: steps between two measurements.
      held_out: windows of held-out text, a multiple of 64.
      files: how many files of the standard library are read; None for all.
    """

    vocabulary: int
    width: int
    context: int
    batch: int
    steps: int
    every: int
    held_out: int
    files: int | None = None


SIZES = {
    "tiny": Size(300, 8, 4, 8, steps=8, every=4, held_out=64, files=40),
    "full": Size(20_000, 64, 32, 32, steps=600, every=20, held_out=4096),
}


class Program:
    """A variant's compiled training, for any number of seeds and threads."""

    def __init__(self, variant: Variant, size: Size, text: Text):
        self._size, self._text = size, text
        self._tx = variant.build()
        self._init = _initialiser(variant.tying, size)
        self._held_out = jnp.asarray(_held_out_windows(text, size))
        params, state = self._start(0)
        self.state_bytes = tree_bytes(state)
        loss = functools.partial(model.loss, tying=variant.tying)
        advance = jax.jit(_advance(self._tx, loss, text.bands()), donate_argnums=(0, 1))
        windows = self._windows(self.starts(0)[0])
        # Compiled here, as settings of JAX do not reach other threads.
        self._advance = advance.lower(params, state, windows).compile()
        self._evaluate = _evaluation(variant.tying, size)

    def starts(self, seed: int) -> np.ndarray:
        """Where in the text the windows of each step begin; the same at every call."""
        size = self._size
        shape = (size.steps // size.every, size.every, size.batch)
        rng = np.random.default_rng(seed)
        return rng.integers(0, len(self._text.train) - size.context, shape)

    def run(self, seed: int, progress: Callable[[], Any]) -> dict[str, Any]:
        """Trains once; the curves hold one value for each measurement."""
        params, state = self._start(seed)
        losses, health = [], []
        starts = self.starts(seed)
        for chunk in starts:
            windows = self._windows(chunk)
            params, state, loss, measured = self._advance(params, state, windows)
            losses.append(float(loss))
            health.append(jax.tree.map(float, measured))
            progress()
        return {
            "loss": losses,
            "held_out_loss": float(self._evaluate(params, self._held_out)),
            "health": jax.tree.map(lambda *points: list(points), *health),
            "others_max_times_decay": _largest_of_others(params) * DECAY,
            "rows_seen": self._seen(starts),
        }

    def timed(self) -> Callable[[], Any]:
        """A call trains on for one measurement, always with the same windows."""
        carry = self._start(0)
        windows = self._windows(self.starts(0)[0])

        def advance() -> Any:
            nonlocal carry
            params, state, loss, _ = self._advance(*carry, windows)
            carry = (params, state)
            return loss

        return advance

    def _start(self, seed: int) -> tuple[Any, Any]:
        params = self._init(jax.random.key(seed))
        return params, self._tx.init(params)

    def _windows(self, starts: np.ndarray) -> jax.Array:
        return jnp.asarray(_windows(self._text.train, starts, self._size.context))

    def _seen(self, starts: np.ndarray) -> float:
        windows = _windows(self._text.train, starts, self._size.context)
        return np.unique(windows[..., :-1]).size / self._size.vocabulary


@functools.cache
def _evaluation(tying: model.Tying, size: Size) -> Any:
    """The mean loss over groups of windows, compiled."""
    params = jax.eval_shape(_initialiser(tying, size), jax.random.key(0))
    shape = (size.held_out // EVALUATED_AT_ONCE, EVALUATED_AT_ONCE, size.context + 1)
    loss = functools.partial(model.loss, tying=tying)
    evaluate = jax.jit(
        lambda params, groups: jax.lax.map(lambda x: loss(params, x), groups).mean()
    )
    return evaluate.lower(params, jax.ShapeDtypeStruct(shape, jnp.int32)).compile()


def _initialiser(tying: model.Tying, size: Size) -> Callable[..., model.Params]:
    return functools.partial(
        model.init,
        vocabulary=size.vocabulary,
        width=size.width,
        context=size.context,
        tying=tying,
    )


def _advance(tx: Any, loss: Callable[..., jax.Array], bands: dict[str, Any]) -> Any:
    """A function that takes one step for each batch of windows, then measures."""

    def step(carry: Any, windows: jax.Array) -> Any:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, windows)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    def advance(params: Any, state: Any, batches: jax.Array) -> Any:
        (params, state), losses = jax.lax.scan(step, (params, state), batches)
        table = params["embedding"]
        health = {"all": ot.embedding_health(table, DECAY)}
        for name, ids in bands.items():
            if ids.size:
                health[name] = ot.embedding_health(table[ids], DECAY)
        if "output" in params:  # the only other table with a row for each word
            health["output"] = ot.embedding_health(params["output"], DECAY)
        return params, state, losses.mean(), health

    return advance


def _windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    return tokens[starts[..., None] + np.arange(context + 1)]


def _held_out_windows(text: Text, size: Size) -> np.ndarray:
    """Evenly spaced windows, in groups that are evaluated at once."""
    last = len(text.held_out) - size.context - 1
    starts = np.linspace(0, last, size.held_out).astype(int)
    return _windows(text.held_out, starts.reshape(-1, EVALUATED_AT_ONCE), size.context)


def _largest_of_others(params: Any) -> float:
    others = {name: value for name, value in params.items() if name != "embedding"}
    matrices = [x for x in jax.tree.leaves(others) if x.ndim > 1]
    return max(float(jnp.abs(x).max()) for x in matrices)
