"""One training run: compiled step, Fisher masks and evaluation."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optaxtricks as ot

from .encoder import Classifier, EncoderConfig
from .recipes import RECIPES, Recipe, Setup
from .task import Examples

WARM_UP = 0.1
HEAD_SCALE = 0.02
FISHER_EXAMPLES = 256
FISHER_BATCH = 16
EVALUATION_BATCH = 64

# The cheapest generator: dropout takes a few per cent of a step with it.
KEY_KIND = "unsafe_rbg"


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What all recipes share: the pretrained encoder, the data, the budget."""

    config: EncoderConfig
    encoder: Any
    num_classes: int
    train: Examples
    dev: Examples
    steps: int
    batch_size: int

    @functools.cached_property
    def model(self) -> nnx.GraphDef:
        """The classifier's structure; its parameters travel as a plain tree."""
        make = functools.partial(Classifier, self.config, self.num_classes)
        return nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))[0]

    def logits(self, params: Any, batch: dict, key: jax.Array | None = None) -> Any:
        """Class scores; a key turns dropout on."""
        model = nnx.merge(self.model, params)
        dropout = {"deterministic": True}
        if key is not None:
            dropout = {"deterministic": False, "rngs": nnx.Rngs(dropout=key)}
        return model(batch["ids"], batch["types"], batch["mask"], **dropout)

    def loss(self, params: Any, batch: dict, key: jax.Array) -> jax.Array:
        """Mean cross-entropy of a batch, with dropout."""
        losses = optax.softmax_cross_entropy_with_integer_labels(
            self.logits(params, batch, key), batch["labels"]
        )
        return losses.mean()

    def log_likelihood(self, params: Any, example: dict) -> jax.Array:
        """log p(label | text) of one example, without dropout."""
        batch = jax.tree.map(lambda x: x[None], example)
        scores = jax.nn.log_softmax(self.logits(params, batch)[0])
        return scores[example["labels"]]

    def initial(self, seed: int) -> Any:
        """Pretrained encoder and a fresh head; new buffers, as steps donate them."""
        shape = (self.config.hidden_size, self.num_classes)
        kernel = np.random.default_rng([seed, 1]).normal(0.0, HEAD_SCALE, shape)
        head = {
            "bias": jnp.zeros(self.num_classes, jnp.float32),
            "kernel": jnp.array(kernel, jnp.float32),
        }
        return {"encoder": jax.tree.map(jnp.array, self.encoder), "head": head}

    def batches(self, seed: int) -> Iterator[dict]:
        """`steps` batches, epoch after epoch, each in a fresh order."""
        rng, order = np.random.default_rng([seed, 0]), np.empty(0, np.int64)
        for _ in range(self.steps):
            while len(order) < self.batch_size:
                order = np.concatenate([order, rng.permutation(len(self.train))])
            yield self.train[order[: self.batch_size]]
            order = order[self.batch_size :]


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
        order = np.argsort(dev.mask.sum(axis=1), kind="stable")
        for start in range(0, len(order), EVALUATION_BATCH):
            rows = order[start : start + EVALUATION_BATCH]
            width = -(-int(dev.mask[rows].sum(axis=1).max()) // 8) * 8
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


class Masks:
    """Fisher masks by seed; the scores are computed once for all recipes."""

    def __init__(self, problem: Problem, recipes: list[str]):
        self._problem = problem
        self._rules = {n: r for n in recipes if (r := RECIPES[n].mask) is not None}
        self._masks: dict[int, dict[str, Any]] = {}

    def get(self, recipe: str, seed: int) -> Any:
        """The recipe's mask for this seed's head, or None if it needs none."""
        if recipe not in self._rules:
            return None
        if seed not in self._masks:
            scores = self._scores(seed)
            self._masks[seed] = {n: rule(scores) for n, rule in self._rules.items()}
        return self._masks[seed][recipe]

    def _scores(self, seed: int) -> Any:
        train = self._problem.train
        count = min(FISHER_EXAMPLES, len(train))
        rows = np.random.default_rng([seed, 2]).permutation(len(train))[:count]
        batches = [
            train[rows[start : start + FISHER_BATCH]]
            for start in range(0, count, FISHER_BATCH)
        ]
        params = self._problem.initial(seed)
        return ot.fisher_information(self._problem.log_likelihood, params, batches)


class Program:
    """A recipe's training step, compiled once for all seeds and learning rates."""

    def __init__(self, problem: Problem, recipe: Recipe):
        self._problem, self._recipe = problem, recipe
        self._compiled: dict[str, Any] = {}

    def transformation(self, peak: Any, key: Any, mask: Any) -> Any:
        """The recipe's chain; `peak` may be traced, so that a grid compiles once."""
        schedule = warm_up_then_decay(peak, self._problem.steps)
        return self._recipe.build(Setup(schedule, key, mask))

    def step(self, mask: Any) -> Callable:
        """The function to compile. The mask itself is read from the state."""

        def step(params, state, batch, key, count, peak):
            tx = self.transformation(peak, jax.random.key(0), mask)
            key = jax.random.fold_in(key, count)
            loss, gradient = jax.value_and_grad(self._problem.loss)(params, batch, key)
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, loss

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
        mask: Any,
        evaluate: Callable[[Any], float],
        evaluations: int,
        advance: Callable[[], None] = lambda: None,
    ) -> tuple[Any, dict[str, Any]]:
        """Trains once. Returns the trained parameters and the run's record."""
        started, problem = time.perf_counter(), self._problem
        params = problem.initial(seed)
        trained = self._recipe.trained(params, mask)
        tx = self.transformation(learning_rate, jax.random.key(seed), mask)
        state = tx.init(params)
        costs: dict[str, Any] = {"trained_parameters": trained}
        costs["optimizer_state_bytes"] = _bytes(state)
        key, peak = jax.random.key(seed, impl=KEY_KIND), np.float32(learning_rate)
        points = np.linspace(0, problem.steps, evaluations + 1).round()[1:]
        curve, times, losses = [], [], []
        step: Any = None
        for count, batch in enumerate(problem.batches(seed)):
            arguments = (params, state, batch, key, np.int32(count), peak)
            step = step or self.compiled(mask, *arguments)
            before = time.perf_counter()
            params, state, loss = step(*arguments)
            losses.append(float(loss))  # waits for the step, so the clock is right
            times.append(time.perf_counter() - before)
            if count + 1 in points:
                curve.append([count + 1, evaluate(params)])
            advance()
        costs["peak_temporary_bytes"] = step.memory_analysis().temp_size_in_bytes
        costs["step_ms"] = 1e3 * statistics.median(times)
        costs["seconds"] = time.perf_counter() - started
        result = {"accuracy": curve[-1][1], "curve": curve, "train_loss": _last(losses)}
        return params, {**result, **costs}


def _bytes(state: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def _last(losses: list[float]) -> float | None:
    """Mean over the last tenth; None after divergence, which JSON cannot write."""
    mean = statistics.fmean(losses[-max(1, len(losses) // 10) :])
    return mean if math.isfinite(mean) else None
