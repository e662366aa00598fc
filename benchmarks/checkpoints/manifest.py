"""Hashes of a folder's files, in one part for each process."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple


class Part(NamedTuple):
    """Which share of the work is one process's: every `count`-th, from `index`."""

    index: int
    count: int


class Manifest(NamedTuple):
    """What the parts say together.

    Attributes:
      content: what was noted beside the hashes.
      hashes: by file.
    """

    content: dict[str, Any]
    hashes: dict[str, str]


def write(folder: Path, part: Part, root: Path, content: dict[str, Any]) -> None:
    """Writes one part: hashes of a share of the files under `root`, and `content`."""
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    hashes = {name: _hash(root / name) for name in files[part.index :: part.count]}
    body = json.dumps({"content": content, "hashes": hashes})
    record = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "body": body}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part.index:05}-of-{part.count:05}.json"
    _write_atomically(path, json.dumps(record).encode())


def complete(folder: Path) -> bool:
    """Whether the part of every process is there."""
    names = [path.stem for path in folder.glob("*.json")]
    return bool(names) and len(names) == int(names[0].rpartition("-")[2])


def read(folder: Path) -> Manifest | None:
    """The parts, joined; None if one of them is damaged."""
    whole = Manifest({}, {})
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            body = record["body"]
            if hashlib.sha256(body.encode()).hexdigest() != record["sha256"]:
                return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        found = json.loads(body)
        whole.content.update(found["content"])
        whole.hashes.update(found["hashes"])
    return whole


def damage(root: Path, hashes: dict[str, str], part: Part) -> str:
    """What is wrong with a share of the files; nothing if all is well."""
    for name in sorted(hashes)[part.index :: part.count]:
        if not (root / name).is_file():
            return f"file {name} is missing"
        if _hash(root / name) != hashes[name]:
            return f"file {name} is not as it was written"
    return ""


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_atomically(path: Path, content: bytes) -> None:
    """After a crash there is no file, or the whole one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
