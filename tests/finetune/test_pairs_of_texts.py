"""How pairs of texts reach the head, in a model that reads both at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.finetune.checkpoint import open_checkpoint
from benchmarks.finetune.encoder import PAIR_FEATURES, Classifier
from benchmarks.finetune.problem import Problem
from benchmarks.finetune.recipes import RECIPES
from benchmarks.finetune.task import encode
from benchmarks.finetune.train import Evaluator

from .conftest import DATA
from .training import SEED, moved

pytestmark = [pytest.mark.usefixtures("training"), pytest.mark.slow]
ROWS = [
    {"text": "open the file", "text_b": "close a queue", "label": "a"},
    {"text": "mean", "text_b": "sum of a list of lines", "label": "b"},
    {"text": "draw a line", "text_b": "", "label": "a"},
]


def encoded(checkpoint, rows, length=16):
    return encode(
        rows, ["a", "b"], checkpoint.tokenizer, checkpoint.config, length=length
    )


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta"])
def test_a_mask_numbers_the_texts(name):
    checkpoint = open_checkpoint(DATA / name)
    examples = encoded(checkpoint, ROWS)
    assert examples.paired and examples.mask.dtype == np.int8
    pad = checkpoint.config.pad_token_id
    for row, mask, ids in zip(ROWS, examples.mask, examples.ids, strict=True):
        real = np.flatnonzero(mask)
        assert (np.diff(mask[real]) >= 0).all() and (ids[mask == 0] == pad).all()
        tokens = checkpoint.tokenizer.encode(row["text_b"], add_special_tokens=False)
        second = ids[mask == 2].tolist()
        assert second[: len(tokens.ids)] == tokens.ids[: len(second)]
    assert not (examples.mask[2] == 2).any()
    single = encoded(checkpoint, [{"text": "open the file", "label": "a"}])
    assert not single.paired and single.mask.dtype == bool


def test_the_head_sees_mean_product_and_distance():
    config = open_checkpoint(DATA / "tiny_bert").config
    model = Classifier(config, 2, rngs=nnx.Rngs(0))
    model.compare_texts(rngs=nnx.Rngs(1))
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(3, 5, config.hidden_size)).astype(np.float32)
    mask = np.array([[1, 1, 2, 0, 0], [1, 2, 2, 2, 2], [1, 1, 1, 1, 0]], np.int8)
    found = model.classify(jnp.asarray(hidden), jnp.asarray(mask), deterministic=True)
    head = nnx.to_pure_dict(nnx.state(model.head, nnx.Param))
    kernel, bias = np.asarray(head["kernel"]), np.asarray(head["bias"])
    assert kernel.shape == (PAIR_FEATURES * config.hidden_size, 2)
    for states, texts, scores in zip(hidden, mask, np.asarray(found), strict=True):
        halves = []
        for n in (1, 2):
            mean = states[texts == n].sum(0) / max(1, (texts == n).sum())
            halves.append(mean / np.sqrt((mean**2).mean() + 1e-6))
        features = [states[texts > 0].mean(0), halves[0] * halves[1]]
        features.append(abs(halves[0] - halves[1]))
        expected = np.concatenate(features) @ kernel + bias
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("recipe", ["full", "ladder"])
def test_pairs_have_a_wider_head_and_equal_starts(recipe):
    checkpoint = open_checkpoint(DATA / "tiny_bert")
    examples = encoded(checkpoint, ROWS[:2])
    plain = Problem(
        checkpoint.config, checkpoint.encoder, 2, examples, examples, 1, batch_size=2
    )
    own = dataclasses.replace(plain, make=RECIPES[recipe].model)
    params = own.initial(SEED)
    assert params["head"]["kernel"].shape == (PAIR_FEATURES * 24, 2)
    assert not moved(params["head"], plain.initial(SEED)["head"])["kernel"].any()
    scores = [jax.jit(p.logits)(p.initial(SEED), examples[:]) for p in (plain, own)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-6)
    assert Evaluator(own)(params) in (0.0, 0.5, 1.0)
