"""Text classification tasks: JSONL folders in, padded arrays of token ids out."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tokenizers

from .docstring_pairs import pair_task
from .docstrings import docstring_task
from .encoder import EncoderConfig
from .errors import InputError

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class BuiltIn:
    """A task made on the spot, and how many tokens hold most of its texts."""

    make: Callable[[], tuple[list[Row], list[Row]]]
    length: int


BUILT_IN = {
    "stdlib-docstrings": BuiltIn(docstring_task, 32),
    "stdlib-pairs": BuiltIn(pair_task, 64),
}
DEFAULT_TASK = "stdlib-docstrings"


@dataclasses.dataclass(frozen=True)
class Task:
    """Rows of a task, checked; every dev label occurs in train."""

    name: str
    train: list[Row]
    dev: list[Row]

    @property
    def labels(self) -> list[str]:
        """Class names; a class's number is its place in this list."""
        return sorted({row["label"] for row in self.train})

    @property
    def digest(self) -> str:
        """Hash of every text and label."""
        content = json.dumps([self.train, self.dev], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Examples:
    """Arrays with a leading example axis; `mask` is as the encoder wants it."""

    ids: np.ndarray
    types: np.ndarray
    mask: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def paired(self) -> bool:
        """Whether an example is a pair of texts."""
        return self.mask.dtype != bool

    def __getitem__(self, rows: Any) -> dict[str, np.ndarray]:
        return {k: v[rows] for k, v in vars(self).items()}


def open_task(name: str | pathlib.Path = DEFAULT_TASK) -> Task:
    """A built-in task by its name, or a task folder, read and checked."""
    if str(name) in BUILT_IN:
        return Task(str(name), *BUILT_IN[str(name)].make())
    folder = pathlib.Path(name)
    if not folder.is_dir():
        raise InputError(
            f"--task: {folder} is not a folder and not one of {list(BUILT_IN)}."
        )
    task = Task(folder.name, *(_read(folder / f"{s}.jsonl") for s in ("train", "dev")))
    for name, rows in (("train", task.train), ("dev", task.dev)):
        paired = sum("text_b" in row for row in rows)
        if 0 < paired < len(rows):
            raise InputError(
                f"{name}.jsonl: 'text_b' is present in {paired} of {len(rows)} rows; "
                "it must be in all or in none."
            )
    if ("text_b" in task.train[0]) != ("text_b" in task.dev[0]):
        raise InputError("'text_b' is present in only one of train.jsonl, dev.jsonl.")
    if unknown := {row["label"] for row in task.dev} - set(task.labels):
        raise InputError(f"dev.jsonl: labels {sorted(unknown)} are not in train.jsonl.")
    if len(task.labels) < 2:
        raise InputError(f"train.jsonl: only one label, {task.labels[0]!r}.")
    return task


def _read(path: pathlib.Path) -> list[Row]:
    try:
        # Not splitlines(): JSON strings may hold other line separators as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} cannot be read: {error}") from None
    rows = [
        _row(line, f"{path.name}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise InputError(f"{path.name} has no rows.")
    return rows


def _row(line: str, where: str) -> Row:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected a JSON object.")
    for name in ("text", "label"):
        if name not in raw:
            raise InputError(f"{where}: field {name!r} is missing.")
    row = {}
    for name in ("text", "text_b"):
        if name in raw:
            if not isinstance(raw[name], str):
                raise InputError(f"{where}: {name!r} must be a string.")
            if any("\ud800" <= c <= "\udfff" for c in raw[name]):
                raise InputError(f"{where}: {name!r} holds half a surrogate pair.")
            row[name] = raw[name]
    if type(raw["label"]) not in (str, int):
        raise InputError(f"{where}: 'label' must be a string or an integer.")
    row["label"] = str(raw["label"])
    return row


def encode(
    rows: list[Row],
    labels: list[str],
    tokenizer: tokenizers.Tokenizer,
    config: EncoderConfig,
    *,
    length: int,
) -> Examples:
    """Tokenizes rows, cut to `length` tokens and padded to it."""
    paired = "text_b" in rows[0]
    special = tokenizer.num_special_tokens_to_add(paired)
    if length <= special:
        raise InputError(f"--length: {length} leaves no room beside special tokens.")
    tokenizer.enable_truncation(length)
    texts = [(r["text"], r["text_b"]) if "text_b" in r else r["text"] for r in rows]
    encodings = tokenizer.encode_batch(texts)
    shape = (len(rows), length)
    ids = np.full(shape, config.pad_token_id, np.int32)
    types, mask = (
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int8 if paired else bool),
    )
    for row, encoding in enumerate(encodings):
        used = len(encoding.ids)
        ids[row, :used] = encoding.ids
        mask[row, :used] = 1
        if 1 in encoding.sequence_ids:
            mask[row, encoding.sequence_ids.index(1) : used] = 2
        if config.type_vocab_size > 1:
            types[row, :used] = encoding.type_ids
    number = {label: n for n, label in enumerate(labels)}
    targets = np.array([number[row["label"]] for row in rows], np.int32)
    # The mean over no token at all would be NaN; such a tokenizer adds no [CLS].
    mask[:, 0] = 1
    return Examples(ids, types, mask, targets)
