"""Checkpoint folders in their various forms."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from benchmarks.finetune.checkpoint import open_checkpoint

DATA = pathlib.Path(__file__).parent / "data"


def rewrite(folder, change):
    """Applies `change` to the tensors of a folder."""
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)


def same(left, right):
    """Whether two encoders have bit-identical word tables and first query kernels."""
    pick = lambda c: (
        c.encoder["embeddings"]["word"]["embedding"],
        c.encoder["layers"][0]["attention"]["query"]["kernel"],
    )
    return all(
        np.array_equal(a, b) for a, b in zip(pick(left), pick(right), strict=True)
    )


@pytest.mark.parametrize("prefix", ["bert.", "roberta.", "model."])
def test_a_prefix_and_extra_tensors_are_ignored(checkpoint, prefix):
    before = open_checkpoint(checkpoint)
    extra = {"lm_head.bias": np.zeros(3, np.float32)}
    rewrite(checkpoint, lambda t: {prefix + k: v for k, v in t.items()} | extra)
    assert same(open_checkpoint(checkpoint), before)


def test_kernels_are_transposed(checkpoint):
    tensors = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    stored = tensors["encoder.layer.1.intermediate.dense.weight"]
    found = open_checkpoint(checkpoint).encoder["layers"][1]["up"]["kernel"]
    np.testing.assert_array_equal(found, stored.T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_widened(checkpoint, dtype):
    before = open_checkpoint(checkpoint)
    rewrite(checkpoint, lambda t: {k: v.astype(dtype) for k, v in t.items()})
    found = open_checkpoint(checkpoint).encoder["embeddings"]["word"]["embedding"]
    assert found.dtype == np.float32
    expected = before.encoder["embeddings"]["word"]["embedding"]
    np.testing.assert_array_equal(found, expected.astype(dtype).astype(np.float32))


def test_a_vocabulary_file_serves_as_tokenizer(checkpoint):
    stored = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = stored["model"]["vocab"]
    (checkpoint / "vocab.txt").write_text(
        "\n".join(sorted(vocabulary, key=vocabulary.get))
    )
    expected = open_checkpoint(checkpoint).tokenizer.encode("Return the mean!", "open")
    (checkpoint / "tokenizer.json").unlink()
    found = open_checkpoint(checkpoint).tokenizer.encode("Return the mean!", "open")
    assert (found.ids, found.type_ids) == (expected.ids, expected.type_ids)


def test_the_digest_follows_the_weights(checkpoint):
    before = open_checkpoint(checkpoint).digest
    assert open_checkpoint(checkpoint).digest == before
    rewrite(checkpoint, lambda t: {k: v + np.float32(1) for k, v in t.items()})
    assert open_checkpoint(checkpoint).digest != before
