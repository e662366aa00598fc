"""What is trained: a decoder, or an encoder, pretrained or synthetic."""

import argparse
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ..finetune.checkpoint import open_checkpoint
from ..finetune.encoder import Classifier, EncoderConfig
from ..finetune.errors import InputError
from ..finetune.task import Examples, encode, open_task
from ..finetune.train import Problem
from .language import open_decoder
from .layout import Rules
from .parts import SIZES as DECODERS
from .program import Work
from .recipes import RECIPES

CLASSES = 4
EXAMPLES = 4096
# Width, layers, heads, vocabulary, length.
SIZES = {
    "tiny": (32, 1, 4, 128, 8),
    "small": (256, 4, 4, 8192, 32),
    "base": (768, 12, 12, 32768, 128),
    "large": (2048, 24, 16, 65536, 512),
}


RULES: Rules = {
    r"/(query|key|value|up)/kernel$": (None, "model"),
    r"/(query|key|value|up)/bias$": ("model",),
    r"/(output|down)/kernel$": ("model", None),
    r"word/embedding$": (None, "model"),
}


def open_work(options: argparse.Namespace, mesh: Mesh) -> Work:
    """What the flags ask for."""
    if options.model in DECODERS:
        return open_decoder(options, mesh)
    if RECIPES[options.recipe].model != "full":
        raise InputError(
            f"--recipe: {options.recipe} is for a decoder: {', '.join(DECODERS)}."
        )
    return _encoder(options) if options.model == "encoder" else _synthetic(options)


def _encoder(options: argparse.Namespace) -> Work:
    checkpoint, task = open_checkpoint(options.pretrained), open_task(options.task)
    length = min(options.length, checkpoint.config.max_length)
    rows = lambda part: encode(
        part, task.labels, checkpoint.tokenizer, checkpoint.config, length=length
    )
    problem = Problem(
        config=checkpoint.config,
        encoder=checkpoint.encoder,
        num_classes=len(task.labels),
        train=rows(task.train),
        dev=rows(task.dev),
        steps=options.steps,
        batch_size=options.batch_size,
    )
    settings = {
        "pretrained": checkpoint.digest[:16],
        "task": task.digest[:16],
        "length": length,
    }
    return _work(problem, settings, given=problem.initial)


def _synthetic(options: argparse.Namespace) -> Work:
    width, layers, heads, vocabulary, length = SIZES[options.size]
    config = EncoderConfig(
        model_type="bert",
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        type_vocab_size=2,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.1,
        pad_token_id=0,
    )
    examples = synthetic_examples(options.seed, vocabulary, length)
    problem = Problem(
        config=config,
        encoder={},  # drawn on the devices
        num_classes=CLASSES,
        train=examples,
        dev=examples,
        steps=options.steps,
        batch_size=options.batch_size,
    )
    return _work(problem, {"size": options.size}, given=None)


def _work(problem: Problem, settings: dict[str, Any], given: Any) -> Work:
    def fresh(key: jax.Array) -> Any:
        rngs = nnx.Rngs(params=key)
        model = Classifier(problem.config, problem.num_classes, rngs=rngs)
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    example = problem.train[np.arange(1)]
    return Work(
        loss=problem.loss,
        fresh=fresh,
        given=given,
        rules=RULES,
        example=example,
        length=example["ids"].shape[1],
        train=lambda: problem.train,
        settings=settings,
    )


def synthetic_examples(seed: int, vocabulary: int, length: int) -> Examples:
    """Words as frequent as in a language; the class is the one most words are of."""
    rng = np.random.default_rng([seed, 3])
    ids = rng.zipf(1.3, (EXAMPLES, length)) % (vocabulary - 1) + 1
    used = rng.integers(length // 2, length + 1, (EXAMPLES, 1))
    mask = np.arange(length) < used
    votes = np.stack([((ids % CLASSES == c) & mask).sum(1) for c in range(CLASSES)])
    return Examples(
        ids=np.where(mask, ids, 0).astype(np.int32),
        types=np.zeros_like(ids, np.int32),
        mask=mask,
        labels=votes.argmax(axis=0).astype(np.int32),
    )
