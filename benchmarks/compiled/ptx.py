"""Registers and spills of the CUDA kernels of a program, told by ptxas."""

import contextlib
import dataclasses
import importlib.util
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

_ENTRY = re.compile(r"Compiling entry function '([^']+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel: its name, registers a thread, bytes a thread spills and loads back."""

    name: str
    registers: int
    spilled: int


@contextlib.contextmanager
def dump(wanted: bool) -> Iterator[tuple[dict[str, Any], Callable[[], list[Kernel]]]]:
    """Compiler options, and a function that tells, after it ran, of its kernels."""
    if not wanted:
        yield {}, list
        return
    with tempfile.TemporaryDirectory() as folder:
        files = lambda: sorted(pathlib.Path(folder).glob("*.ptx"))
        yield {"xla_dump_to": folder}, lambda: [k for f in files() for k in _kernels(f)]


def parse(report: str) -> list[Kernel]:
    """What `ptxas -v` says of each kernel."""
    found = []
    for part in report.split("Compiling entry function")[1:]:
        name = _ENTRY.search("Compiling entry function" + part)
        spills, registers = _SPILLS.search(part), _REGISTERS.search(part)
        if name and spills and registers:
            spilled = int(spills[1]) + int(spills[2])
            found.append(Kernel(name[1], int(registers[1]), spilled))
    return found


def _kernels(source: pathlib.Path) -> list[Kernel]:
    architecture = re.search(r"\.target (\w+)", source.read_text())
    if architecture is None:
        return []
    command = [_ptxas(), "-v", f"-arch={architecture[1]}", "-o", "/dev/null"]
    done = subprocess.run(
        [*command, str(source)], capture_output=True, text=True, check=True
    )
    return parse(done.stderr)


def _ptxas() -> str:
    """The assembler of the package nvidia-cuda-nvcc."""
    spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "nvidia-cuda-nvcc-cu12 is not installed, whose ptxas tells of registers. "
            "Run `make compiled`."
        )
    return str(pathlib.Path(spec.submodule_search_locations[0]) / "bin" / "ptxas")
