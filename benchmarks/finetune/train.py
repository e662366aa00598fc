"""One training run: schedule, compiled step and evaluation."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optaxtricks as ot

from .fisher import Derived
from .problem import KEY_KIND, Problem, overlay
from .recipes import Recipe, Setup

WARM_UP = 0.1
EVALUATION_BATCH = 64


def warm_up_then_decay(peak: Any, steps: int) -> optax.Schedule:
    """Linear up to `peak` in a tenth of the steps, then linear down towards 0.

    Neither end is 0 itself, where a step would be spent on nothing.
    """
    rise = max(1, round(WARM_UP * steps))
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / rise, peak, max(1, rise - 1)),
            optax.linear_schedule(peak, 0.0, steps - rise + 1),
        ],
        [rise - 1],
    )


class Evaluator:
    """Dev accuracy, in batches of similar length to spend little on padding."""

    def __init__(self, problem: Problem):
        self._predict = jax.jit(
            lambda params, batch: problem.logits(params, batch).argmax(axis=-1)
        )
        dev, self._batches = problem.dev, []
        lengths = dev.mask.astype(bool).sum(axis=1)
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), EVALUATION_BATCH):
            rows = order[start : start + EVALUATION_BATCH]
            width = -(-int(lengths[rows].max()) // 8) * 8
            # Repeated rows fill the last batch, so that shapes stay few.
            batch = dev[np.resize(rows, EVALUATION_BATCH)]
            texts = {k: batch[k][:, :width] for k in ("ids", "types", "mask")}
            self._batches.append((texts, dev.labels[rows]))
        self._total = len(dev)

    def __call__(self, params: Any) -> float:
        """The share of dev examples classified rightly."""
        right = 0
        for texts, labels in self._batches:
            found = np.asarray(self._predict(params, texts))[: len(labels)]
            right += int((found == labels).sum())
        return right / self._total


class Program:
    """A recipe's training step, compiled once for all seeds and learning rates."""

    def __init__(self, problem: Problem, recipe: Recipe):
        self._plain = dataclasses.replace(problem, make=recipe.model)
        self._recipe = recipe
        self._compiled: dict[str, Any] = {}
        self._caching_seconds: float | None = None

    @functools.cached_property
    def problem(self) -> Problem:
        """The problem of the recipe's model, with cached taps if it trains on them."""
        if not self._recipe.cached:
            return self._plain
        started = time.perf_counter()
        tapped = self._plain.tapped()
        self._caching_seconds = time.perf_counter() - started
        return tapped

    def initial(self, seed: int, start: Any = None) -> Any:
        """What training starts from; `start` replaces some of the fresh leaves."""
        params = self._plain.initial(seed)
        # New buffers, as steps donate them.
        return (
            params if start is None else overlay(params, jax.tree.map(jnp.array, start))
        )

    def transformation(self, peak: Any, key: Any, mask: Any) -> Any:
        """The recipe's chain; `peak` may be traced, so that a grid compiles once."""
        schedule = warm_up_then_decay(peak, self._plain.steps)
        return self._recipe.build(Setup(schedule, key, mask))

    def step(self, mask: Any) -> Callable:
        """The function to compile. The mask itself is read from the state."""
        trains = self._recipe.trains
        value_and_grad = jax.value_and_grad(self.problem.loss)
        if trains:
            value_and_grad = ot.side_value_and_grad(self.problem.loss, side=trains)

        def step(tuned, state, frozen, batch, key, count, peak):
            params = ot.merge(tuned, frozen)
            tx = self.transformation(peak, jax.random.key(0), mask)
            key = jax.random.fold_in(key, count)
            loss, gradient = value_and_grad(params, batch, key)
            updates, state = tx.update(gradient, state, params)
            updates, _ = ot.split(updates, trains)
            return optax.apply_updates(tuned, updates), state, loss

        return step

    def compiled(self, mask: Any, *arguments: Any) -> Any:
        """Compiled for these shapes; the kept entries of a mask are a shape too."""
        shapes = str(jax.tree.map(jnp.shape, arguments))
        if shapes not in self._compiled:
            jitted = jax.jit(self.step(mask), donate_argnums=(0, 1))
            self._compiled[shapes] = jitted.lower(*arguments).compile()
        return self._compiled[shapes]

    def run(
        self,
        *,
        learning_rate: float,
        seed: int,
        evaluate: Callable[[Any], float],
        evaluations: int,
        derived: Derived | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> tuple[Any, dict[str, Any]]:
        """Trains once. Returns the trained parameters and the run's record."""
        started, problem = time.perf_counter(), self.problem
        mask, start = (derived.mask, derived.start) if derived else (None, None)
        params = self.initial(seed, start)
        trained = self._recipe.trained(params, mask)
        tx = self.transformation(learning_rate, jax.random.key(seed), mask)
        state = tx.init(params)
        tuned, frozen = ot.split(params, self._recipe.trains)
        costs: dict[str, Any] = {"trained_parameters": trained}
        costs["optimizer_state_bytes"] = _bytes(state)
        key, peak = jax.random.key(seed, impl=KEY_KIND), np.float32(learning_rate)
        points = np.linspace(0, problem.steps, evaluations + 1).round()[1:]
        curve, times, losses = [], [], []
        step: Any = None
        for count, batch in enumerate(problem.batches(seed)):
            arguments = (tuned, state, frozen, batch, key, np.int32(count), peak)
            step = step or self.compiled(mask, *arguments)
            before = time.perf_counter()
            tuned, state, loss = step(*arguments)
            losses.append(float(loss))  # waits for the step, so the clock is right
            times.append(time.perf_counter() - before)
            if count + 1 in points:
                curve.append([count + 1, evaluate(ot.merge(tuned, frozen))])
            advance()
        costs["peak_temporary_bytes"] = step.memory_analysis().temp_size_in_bytes
        seconds = statistics.median(times)
        costs["step_ms"] = 1e3 * seconds
        costs["epoch_seconds"] = seconds * len(problem.train) / problem.batch_size
        costs["caching_seconds"] = self._caching_seconds
        costs["seconds"] = time.perf_counter() - started
        result = {
            "accuracy": curve[-1][1],
            "curve": curve,
            "train_loss": _mean(losses[-max(1, len(losses) // 10) :]),
            "first_epoch_loss": _mean(
                losses[: len(problem.train) // problem.batch_size]
            ),
        }
        return ot.merge(tuned, frozen), {**result, **costs}


def _bytes(state: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _mean(losses: list[float]) -> float | None:
    """None after divergence, which JSON cannot write."""
    mean = statistics.fmean(losses)
    return mean if math.isfinite(mean) else None
