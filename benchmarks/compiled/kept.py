"""What a compiler made of a program, kept in a folder under the program's own hash.

JAX's compilation cache cannot read programs back for devices that are not there, so
what is needed of one is kept: its text, its temporaries, its kernels.
"""

import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import time
from typing import Any

from .. import harness
from . import ptx

COMPILERS = ("jaxlib", "libtpu", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What is read of a compiled program.

    Attributes:
      text: its optimised HLO, as scheduled.
      temporaries: bytes on a device, as XLA tells.
      seconds: of compiling it.
      kernels: of CUDA, where they were asked for.
      arguments: bytes on a device of its arguments, and of what it returns elsewhere
        than in their place.
    """

    text: str
    temporaries: int
    seconds: float
    kernels: list[ptx.Kernel]
    arguments: int = 0


def compiled(
    lowered: Any, target: str, *, kernels: bool, folder: pathlib.Path | None
) -> Compiled:
    """Compiles a lowered program, unless the folder has it."""
    if folder is None:
        return _compile(lowered, kernels)
    compilers = [harness.version(name) for name in COMPILERS]
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    program = json.dumps([lowered.as_text(), target, kernels, compilers, flags])
    path = folder / f"{hashlib.sha256(program.encode()).hexdigest()}.json.gz"
    if path.exists():
        found = json.loads(gzip.decompress(path.read_bytes()))
        return Compiled(
            **found | {"kernels": [ptx.Kernel(**each) for each in found["kernels"]]}
        )
    result = _compile(lowered, kernels)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dataclasses.asdict(result)).encode()
    part = path.with_suffix(f".{time.monotonic_ns()}")
    part.write_bytes(gzip.compress(text, 1))
    part.replace(path)  # whole or not at all, whoever else writes it
    return result


def _compile(lowered: Any, kernels: bool) -> Compiled:
    start = time.perf_counter()
    with ptx.dump(kernels) as (options, assembled):
        made = lowered.compile(compiler_options=options)
        seconds = time.perf_counter() - start
        found = assembled()
    held: Any = made.memory_analysis()
    return Compiled(
        text=made.as_text() or "",
        temporaries=held.temp_size_in_bytes,
        seconds=seconds,
        kernels=found,
        arguments=held.argument_size_in_bytes
        + held.output_size_in_bytes
        - held.alias_size_in_bytes,
    )
