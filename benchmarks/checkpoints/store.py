"""The checkpoints of a run: Orbax's, with a manifest that says they are whole."""

import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from . import manifest
from .differences import layout, layout_differences, settings_differences
from .errors import CheckpointError

MANIFESTS = "manifests"
LIMIT = 4  # differences that a message spells out


class Restored(NamedTuple):
    """What `Checkpoints.restore` found.

    Attributes:
      step: the step it was saved at.
      tree: its content, placed as asked for.
      notes: what was noted beside it.
    """

    step: int
    tree: Any
    notes: dict[str, Any]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class Checkpoints:
    """The checkpoints of one run: a folder that all its processes see.

    Orbax writes a step asynchronously, every process its own shards. Once it is
    complete, every process writes its part of the manifest. The step counts from then
    on; what a crash left without one is removed at the next start. Before a step is
    read its files are hashed again, and a damaged one is set aside for the one before.

    Every process must make the same calls.

    Args:
      folder: made if it is not there.
      settings: what must be equal for a run to go on: JSON values, in dicts.
      notes: what may differ, such as the mesh; `restore` hands it back.
      keep: how many steps to keep; at least 2, as the newest may turn out damaged.
      report: gets a line, on process 0, for each step that is not used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        keep: int = 3,
        report: Callable[[str], None] = _to_stderr,
    ):
        if keep < 2:
            raise ValueError(f"keep must be at least 2, got {keep!r}.")
        self._folder, self._report = folder.absolute(), report
        self._settings, self._notes = dict(settings), dict(notes or {})
        self._part = manifest.Part(jax.process_index(), jax.process_count())
        self._sealing: _Task | None = None
        if self._steps() and not (self._folder / MANIFESTS).is_dir():
            raise CheckpointError(
                f"{folder} has checkpoints without manifests, of another program."
            )
        self._once(self._sweep)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep)
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, tree: Any) -> None:
        """Begins to write a step; waits for the one before, not for this one."""
        self.wait()
        if not self._manager.save(step, args=ocp.args.StandardSave(tree)):
            raise CheckpointError(f"step {step} is not after all others saved.")
        content = {
            "settings": self._settings,
            "layout": layout(tree),
            "notes": self._notes,
        }
        self._sealing = _Task(lambda: self._seal(step, content))

    def wait(self) -> None:
        """Waits until what was begun is on disk, with its manifest."""
        task, self._sealing = self._sealing, None
        if task is not None:
            task.result()

    def close(self) -> None:
        """Waits, and frees what Orbax holds."""
        self.wait()
        self._manager.close()

    def restore(self, like: Any) -> Restored | None:
        """The newest step that is whole; None if there is no step.

        Args:
          like: arrays or `jax.ShapeDtypeStruct`s, whose shardings the result has.

        Raises:
          CheckpointError: every step is damaged; or the newest whole one was written
            with other settings or holds another tree, and then it says which.
        """
        self.wait()
        refused: dict[int, str] = {}
        for step in sorted(self._steps(), reverse=True):
            found, problem = self._verify(step)
            if self._any(problem):
                refused[step] = problem or "another process found it damaged"
                continue
            self._check(step, found.content, like)
            self._refuse(refused)
            tree = self._manager.restore(step, args=ocp.args.StandardRestore(like))
            return Restored(step, tree, found.content["notes"])
        if refused:
            reasons = "; ".join(f"step {step}: {why}" for step, why in refused.items())
            raise CheckpointError(f"no checkpoint is whole: {reasons}.")
        return None

    def _steps(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        return [int(p.name) for p in self._folder.iterdir() if p.name.isdecimal()]

    def _manifest(self, step: int) -> Path:
        return self._folder / MANIFESTS / str(step)

    def _sweep(self) -> None:
        """Removes what a crash left unfinished."""
        (self._folder / MANIFESTS).mkdir(parents=True, exist_ok=True)
        whole = {str(s) for s in self._steps() if manifest.complete(self._manifest(s))}
        for path in self._folder.iterdir():
            # Orbax's temporary folders are called by the step, a dot and more.
            if path.name.partition(".")[0].isdecimal() and path.name not in whole:
                self._report(f"checkpoint {path.name} was not finished; it is removed.")
                shutil.rmtree(path)
        self._drop_old_manifests()

    def _drop_old_manifests(self) -> None:
        kept = {str(step) for step in self._steps()}
        for path in (self._folder / MANIFESTS).iterdir():
            if path.name not in kept:
                shutil.rmtree(path)

    def _seal(self, step: int, content: dict[str, Any]) -> None:
        """Runs beside training: waits for Orbax, then writes this process's part."""
        self._manager.wait_until_finished()
        first = self._part.index == 0
        root, folder = self._folder / str(step), self._manifest(step)
        manifest.write(folder, self._part, root, content if first else {})
        if first:
            self._drop_old_manifests()

    def _verify(self, step: int) -> tuple[manifest.Manifest, str]:
        """The manifest, and what this process finds wrong with its share of files."""
        found = manifest.read(self._manifest(step))
        if found is None:
            return manifest.Manifest({}, {}), "its manifest is damaged"
        root = self._folder / str(step)
        return found, manifest.damage(root, found.hashes, self._part)

    def _check(self, step: int, content: dict[str, Any], like: Any) -> None:
        found = settings_differences(content["settings"], self._settings)
        verb = "was written " if found else ""
        found = found or layout_differences(content["layout"], layout(like))
        if found:
            more = f" (and {len(found) - LIMIT} more)" if len(found) > LIMIT else ""
            shown = verb + "; ".join(found[:LIMIT])
            raise CheckpointError(f"the checkpoint of step {step} {shown}{more}.")

    def _refuse(self, refused: Mapping[int, str]) -> None:
        """Sets damaged steps aside, so that their numbers are free again."""
        for step, why in refused.items():
            if self._part.index == 0:
                self._report(f"the checkpoint of step {step} is not used: {why}.")
        self._once(lambda: [self._set_aside(step) for step in refused])
        self._manager.reload()

    def _set_aside(self, step: int) -> None:
        target = self._folder / f"damaged-{step}"
        shutil.rmtree(target, ignore_errors=True)
        (self._folder / str(step)).rename(target)
        shutil.rmtree(self._manifest(step))

    def _once(self, action: Callable[[], Any]) -> None:
        """Does it on process 0; the others wait for it."""
        if self._part.index == 0:
            action()
        if self._part.count > 1:
            multihost_utils.sync_global_devices("checkpoints")

    def _any(self, problem: str) -> bool:
        """Whether any process sees a problem: all must choose the same step."""
        if self._part.count == 1:
            return bool(problem)
        mine = np.asarray(bool(problem))
        return bool(np.any(multihost_utils.process_allgather(mine)))


class _Task:
    """A function at work in a thread, whose error is not lost."""

    def __init__(self, work: Callable[[], None]):
        self._work = work
        self._error: BaseException | None = None
        # A daemon: a run that fails must not wait for a checkpoint to be hashed.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> None:
        """Waits; raises what the function raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
