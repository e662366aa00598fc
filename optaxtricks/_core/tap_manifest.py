"""The record beside stored taps: of what they are, and how far they are written."""

import dataclasses
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

NAME = "taps.json"
LOCK = "taps.lock"
_FORMATS = ("optaxtricks taps 1", "optaxtricks taps 2")
"""Without and with a tap that has its examples on another axis than the first."""


class Spec(NamedTuple):
    """One tap of one example, and the axis on which the backbone gives examples."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one example."""
        return np.dtype(self.dtype).itemsize * int(np.prod(self.shape, dtype=np.int64))


class Block(NamedTuple):
    """Rows that were written and flushed together, and a checksum for each tap."""

    rows: int
    checks: tuple[int, ...]


@dataclasses.dataclass
class Manifest:
    """All that is known of a cache but the taps themselves."""

    params: str
    data: str
    examples: int
    layout: Any
    taps: list[Spec]
    blocks: list[Block] = dataclasses.field(default_factory=list)
    complete: bool = False

    @property
    def rows(self) -> int:
        """Examples that are safely on disk."""
        return sum(block.rows for block in self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of all taps of all examples."""
        return self.examples * sum(tap.row_bytes for tap in self.taps)

    def reject_other(self, wanted: "Manifest", folder: Path) -> None:
        """Rejects a cache of other parameters, data or taps, saying which differ."""
        names = {
            "params": "the parameters (another checkpoint)",
            "data": "the data",
            "taps": f"the taps (stored {_shown(self)}, now {_shown(wanted)})",
            "layout": "the containers of the taps",
        }
        stale = [
            text
            for name, text in names.items()
            if getattr(self, name) != getattr(wanted, name)
        ]
        if stale:
            raise ValueError(
                f"the cache in {str(folder)!r} is stale: {' and '.join(stale)} differ "
                "from those it was made with. Delete the folder or give another one."
            )


def save(manifest: Manifest, folder: Path) -> None:
    """Replaces the manifest in one step: a reader sees the old or the new one."""
    held: dict[str, Any] = dataclasses.asdict(manifest)
    moved = any(tap.axis for tap in manifest.taps)
    held["taps"] = [tap if moved else tap[:3] for tap in manifest.taps]
    body = json.dumps(held, sort_keys=True)
    record = {
        "format": _FORMATS[moved],
        "check": zlib.crc32(body.encode()),
        "body": body,
    }
    new = folder / f"{NAME}.new"
    with open(new, "w", encoding="utf-8") as file:
        json.dump(record, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, folder / NAME)
    _sync_folder(folder)


def load(folder: Path) -> Manifest | None:
    """The manifest of a folder; None for a folder that is empty or not there.

    Raises:
      ValueError: the folder holds other things than taps, or the manifest is damaged.
    """
    try:
        names = {entry.name for entry in folder.iterdir()}
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise ValueError(f"folder {str(folder)!r} is a file.") from None
    if NAME not in names:
        # A run that was killed at its very start leaves no more than these.
        if strange := sorted(names - {LOCK, f"{NAME}.new"}):
            raise ValueError(
                f"folder {str(folder)!r} is not empty and is no cache of taps: it "
                f"holds {', '.join(map(repr, strange[:5]))}. Give another one."
            )
        return None
    return _parsed(folder / NAME)


def as_given(shape: Sequence[Any], axis: int) -> list[Any]:
    """A shape with its first entry, that of examples, where the backbone has it."""
    return [*shape[1 : axis + 1], shape[0], *shape[axis + 1 :]]


def damaged(file: Path, why: str) -> ValueError:
    """The error for stored bytes that are not those that were written."""
    return ValueError(
        f"the cache is damaged: {str(file)!r} {why}. Delete its folder and cache again."
    )


def to_json(tree: Any) -> Any:
    """The containers of a tree of leaf numbers, as JSON can hold them.

    Raises:
      TypeError: a container other than dicts with string keys, lists and tuples.
    """
    if tree is None or type(tree) is int:
        return tree
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: to_json(tree[key]) for key in sorted(tree)}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [to_json(node) for node in tree]}
    raise TypeError(
        "taps in a folder must be arrays in dicts with string keys, lists and tuples, "
        f"got a {type(tree).__name__}."
    )


def structure_of(layout: Any) -> Any:
    """The JAX tree structure that `to_json` wrote down."""
    return jax.tree.structure(_from_json(layout))


def _from_json(node: Any) -> Any:
    if node is None or isinstance(node, int):
        return node
    ((kind, children),) = node.items()
    if kind == "dict":
        return {key: _from_json(child) for key, child in children.items()}
    made = [_from_json(child) for child in children]
    return tuple(made) if kind == "tuple" else made


def _parsed(file: Path) -> Manifest:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        kind, check, text = record["format"], record["check"], record["body"]
    except (ValueError, TypeError, KeyError):
        raise damaged(file, "cannot be read") from None
    if kind not in _FORMATS:
        raise ValueError(
            f"{str(file)!r} has format {kind!r}, this reads {' and '.join(_FORMATS)}."
        )
    if not isinstance(text, str) or check != zlib.crc32(text.encode()):
        raise damaged(file, "does not have its checksum")
    body = json.loads(text)
    body["taps"] = [Spec(p, dtype, tuple(s), *a) for p, dtype, s, *a in body["taps"]]
    body["blocks"] = [Block(rows, tuple(checks)) for rows, checks in body["blocks"]]
    return Manifest(**body)


def _shown(manifest: Manifest) -> str:
    return ", ".join(f"{tap.path!r} {tap.dtype}{_dims(tap)}" for tap in manifest.taps)


def _dims(tap: Spec) -> str:
    whole = as_given(("examples", *tap.shape), tap.axis)
    return f"[{', '.join(map(str, whole if tap.axis else tap.shape))}]"


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power cut, where the system lets one sync a folder."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
