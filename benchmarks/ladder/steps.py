"""The training step of a recipe on random texts, compiled and ready to run."""

from typing import Any

import jax
import numpy as np
from flax import nnx

import optaxtricks as ot

from .. import harness
from ..finetune.encoder import Encoder, EncoderConfig, parse_config
from ..finetune.problem import KEY_KIND, Problem
from ..finetune.recipes import RECIPES
from ..finetune.task import Examples
from ..finetune.train import Program

CLASSES, SCALE = 2, 0.02


def encoder_config(*, layers: int, width: int, vocabulary: int, heads: int) -> Any:
    """A BERT of these sizes."""
    raw = {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
    }
    return parse_config(raw, __name__)


def random_problem(config: EncoderConfig, *, batch_size: int, length: int) -> Problem:
    """One batch of random texts without padding, on a random encoder."""
    rng = np.random.default_rng(0)
    shape = (batch_size, length)
    examples = Examples(
        ids=rng.integers(config.vocab_size, size=shape).astype(np.int32),
        types=np.zeros(shape, np.int32),
        mask=np.ones(shape, bool),
        labels=rng.integers(CLASSES, size=batch_size).astype(np.int32),
    )
    make = lambda: Encoder(config, rngs=nnx.Rngs(0))
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
    draw = lambda leaf: rng.normal(0.0, SCALE, leaf.shape).astype(leaf.dtype)
    encoder = jax.tree.map(draw, shapes)
    return Problem(
        config, encoder, CLASSES, examples, examples, steps=100, batch_size=batch_size
    )


class RecipeStep:
    """A recipe's step with donated parameters and state; a call runs it."""

    def __init__(self, problem: Problem, name: str):
        recipe = RECIPES[name]
        program = Program(problem, recipe)
        params = program.initial(0)
        rate, key = recipe.learning_rate, jax.random.key(0, impl=KEY_KIND)
        state = program.transformation(rate, key, None).init(params)
        tuned, frozen = ot.split(params, recipe.trains)
        batch = next(program.problem.batches(0))
        self._rest = (frozen, batch, key, np.int32(0), np.float32(rate))
        self._carried = (tuned, state)
        self.trained = recipe.trained(params, None)
        self.compiled = program.compiled(None, tuned, state, *self._rest)

    def __call__(self) -> jax.Array:
        tuned, state, loss = self.compiled(*self._carried, *self._rest)
        self._carried = (tuned, state)
        return loss

    @property
    def costs(self) -> dict[str, float]:
        """What XLA says of the compiled step."""
        return {
            "GFLOP": self.compiled.cost_analysis()["flops"] / 1e9,
            "temp MB": harness.temp_bytes(self.compiled) / 1e6,
        }
