"""Runs of the training script in processes of their own, and what they leave behind.

The processes are forked from a server that has imported all but has touched no device:
a fresh interpreter would take longer to import than to train.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.pod.__main__ import main

PATIENCE = 240.0  # seconds, on a machine that does much else
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.pod.runs"])
# Compilation takes nearly all of these tests' time.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def flags(recipe: str, cache: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Flags of a tiny run that logs and saves every step; `changes` add to them."""
    given = {
        "size": "tiny",
        "recipe": recipe,
        "batch_size": 8,
        "log_every": 1,
        "checkpoint_every": 1,
        "mesh": "data=2,model=2",
        "compilation_cache": cache,
        "out": out,
        **changes,
    }
    return {"--" + name.replace("_", "-"): value for name, value in given.items()}


class Run:
    """One process of the script, whose output goes into a file."""

    def __init__(self, flags: dict[str, Any], *, devices: int, log: Path):
        argv = [str(part) for pair in flags.items() for part in pair]
        self.log = log
        self.process = CONTEXT.Process(target=_child, args=(argv, devices, str(log)))
        self.process.start()

    def wait(self) -> None:
        """Waits for a good end."""
        self.process.join(PATIENCE)
        assert self.process.exitcode == 0, self.log.read_text()

    def kill(self) -> bool:
        """Kills it as the kernel would; tells whether it was still at work."""
        self.process.kill()
        self.process.join()
        return self.process.exitcode != 0


def _child(argv: list[str], devices: int, log: str) -> None:
    count = f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = f"{count} {FAST}"
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(argv))


@contextlib.contextmanager
def started(*runs: Run) -> Iterator[None]:
    """Leaves no process behind."""
    try:
        yield
    finally:
        for run in runs:
            run.kill()


def finish(flags: dict[str, Any], *, devices: int, log: Path) -> str:
    """One process from its start to its end; what it said."""
    run = Run(flags, devices=devices, log=log)
    with started(run):
        run.wait()
    return log.read_text()


def wait_for(condition: Any, run: Run) -> None:
    """Looks again and again, until it holds or the run has ended."""
    end = time.monotonic() + PATIENCE
    while not condition() and run.process.is_alive():
        assert time.monotonic() < end, run.log.read_text()
        time.sleep(0.001)


def losses(out: Path) -> list[float]:
    """The loss of every step that was logged."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def saved(out: Path, step: int) -> dict[str, np.ndarray]:
    """A checkpoint as NumPy arrays by path, read by Orbax alone."""
    folder = out / "checkpoints" / str(step) / "default"
    with ocp.PyTreeCheckpointer() as reader:
        found: Any = reader.metadata(folder)
        whole = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
        args = jax.tree.map(whole, found.item_metadata.tree)
        tree = reader.restore(folder, restore_args=args)
    return {
        jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(leaf)
        for keys, leaf in jax.tree.leaves_with_path(tree)
    }


def unfinished(out: Path) -> bool:
    """Whether a checkpoint is there whose manifest is not."""
    folder = out / "checkpoints"
    if not folder.is_dir():
        return False
    steps = {p.name.partition(".")[0] for p in folder.iterdir()} - {"manifests"}
    return any(not list((folder / "manifests" / s).glob("*.json")) for s in steps)


def copy_until(out: Path, step: int, target: Path) -> None:
    """Copies a run as it was when that step had been saved."""
    shutil.copytree(out, target)
    for path in (target / "checkpoints").iterdir():
        if path.name.isdecimal() and int(path.name) > step:
            shutil.rmtree(path)
