"""A small backbone for the tests of cached taps, and damage done to its cache."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optaxtricks as ot
from optaxtricks._core import tap_manifest

RNG = np.random.default_rng(3)
DATA = {"x": RNG.normal(size=(11, 4)).astype("f4"), "id": np.arange(11)}
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(5, 3)), jnp.bfloat16),
}


def backbone(params: Any, batch: Any) -> Any:
    """Taps of three dtypes, one of them a scalar an example."""
    h = jnp.tanh(batch["x"] @ params["a"])
    low = h.astype(jnp.bfloat16)[:, None, :] @ params["b"]
    return {"taps": [h, low], "id": (batch["id"],)}


def batches(size: int = 3) -> list[Any]:
    """The data in batches, the last one ragged."""
    return [
        jax.tree.map(lambda x, i=i: x[i : i + size], DATA) for i in range(0, 11, size)
    ]


def cached(folder: Any = None, stream: Any = None, params: Any = PARAMS, **how: Any):
    """The taps of all data, batch by batch."""
    stream = batches() if stream is None else stream
    return ot.nn.cache_taps(backbone, stream, params=params, folder=folder, **how)


def expected(size: int = 3) -> Any:
    """Taps of each batch, put together."""
    parts = [jax.jit(backbone)(PARAMS, batch) for batch in batches(size)]
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(y) for y in x]), *parts)


class Loader:
    """A stream that counts how often it is read."""

    def __init__(self, stream):
        self.stream, self.readings = stream, 0

    def __iter__(self):
        self.readings += 1
        return iter(self.stream)


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class Dies:
    """Batches of which the given one never comes when they are read again."""

    def __init__(self, number):
        self.number, self.readings = number, 0

    def __iter__(self):
        self.readings += 1
        for i, batch in enumerate(batches()):
            if self.readings == 2 and i == self.number:
                raise Killed
            yield batch


def wide(params: Any, x: Any) -> Any:
    """A tap of 400 bytes an example."""
    return jnp.repeat(x[:, None], 100, axis=1) * params


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder but the lock."""
    paths = [path for path in folder.iterdir() if path.suffix != ".lock"]
    return {path.name: path.read_bytes() for path in paths}


def rows_on_record(folder: Path) -> int:
    """Examples that the manifest counts."""
    manifest = tap_manifest.load(folder)
    assert manifest is not None
    return manifest.rows


def start(code: str, *arguments: Any) -> subprocess.Popen[str]:
    """A Python process at work on its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=Path(ot.__file__).parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A process with little room must not write to a shared cache of programs.
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
    )
