"""The training loop: a compiled step on a mesh, checkpoints and a log."""

import argparse
from collections.abc import Callable

import jax

from ..checkpoints import Checkpoints
from . import cli
from .batches import Batches
from .log import Log
from .mesh import make_mesh
from .program import Program
from .work import open_work


def train(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Trains to the end, from the newest checkpoint if there is one."""
    mesh = make_mesh(options.mesh)
    work = open_work(options, mesh)
    program = Program(work, options, mesh)
    notes = {"mesh": dict(mesh.shape), "processes": jax.process_count()}
    store = Checkpoints(
        options.out / "checkpoints",
        settings=cli.settings(options, dict(work.settings)),
        notes=notes,
        keep=options.keep,
        report=say,
    )
    found = store.restore(program.shapes)
    start, run = (found.step, found.tree) if found else (0, program.begin())
    if found:
        say(f"going on after step {start} of {options.steps}.")
    if found and found.notes != notes:
        say(
            f"it was written on {found.notes}, this run is on {notes}: the trajectory "
            "goes on up to rounding, not to the bit."
        )
    log = Log(options.out / "metrics.jsonl", start, active=jax.process_index() == 0)
    batches = Batches(work.train(), program.batch, seed=options.seed)
    step = program.step()
    for done in range(start, options.steps):
        run, seen = step(run, batches[done], done)
        last = done + 1 == options.steps
        if last or (done + 1) % options.log_every == 0:
            log.add(done + 1, seen)
        if last or (done + 1) % options.checkpoint_every == 0:
            log.flush()  # before the checkpoint, as lines after it are written anew
            store.save(done + 1, run)
    log.flush()
    store.close()
    say(f"{options.steps} steps on {notes}: loss {log.last.get('loss')}")
