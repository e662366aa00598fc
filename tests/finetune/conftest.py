"""Tiny checkpoints and a tiny task for the tests of the fine-tuning benchmark."""

import json
import pathlib
import shutil

import jax
import pytest

DATA = pathlib.Path(__file__).parent / "data"
THEMES = {"mail": "mail message header", "maths": "sum mean variance"}


@pytest.fixture
def training():
    """Settings for tests that train a few steps.

    Optax's own Adam and schedules need standard promotion where they are traced.
    Compilation takes nearly all of these tests' time, so it does not optimise.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tiny BERT that a test may damage."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(DATA / "tiny_bert" / name, folder)
    return folder


@pytest.fixture
def task(tmp_path):
    """A folder with 24 training and 6 dev rows of two classes."""
    return write_task(tmp_path / "task")


def write_task(folder):
    """Makes that folder."""
    folder.mkdir()
    for split, count in (("train", 12), ("dev", 3)):
        rows = [
            {"text": f"{words} " * (1 + n % 3) + "file", "label": label}
            for n in range(count)
            for label, words in THEMES.items()
        ]
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


def write_rows(path, rows):
    """Writes a JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
