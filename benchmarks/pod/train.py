"""The training loop: a compiled step on a mesh, checkpoints and a log."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optaxtricks as ot

from ..checkpoints import Checkpoints
from ..finetune.train import warm_up_then_decay
from . import cli
from .log import Log
from .placement import Batches, make_mesh, param_shardings
from .recipes import RECIPES, Setup, all_entries, largest_entries
from .work import Work, open_work


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: how a run begins and how it takes a step."""

    work: Work
    options: argparse.Namespace
    mesh: Mesh

    @functools.cached_property
    def shapes(self) -> dict[str, Any]:
        """Parameters and optimizer state as shapes, dtypes and shardings."""
        params = self.work.abstract_params()
        params = _placed(params, param_shardings(params, self.mesh))
        tx = self._tx(all_entries(params))
        state = jax.eval_shape(tx.init, params)
        return {
            "params": params,
            "state": _placed(state, ot.state_shardings(tx, params)),
        }

    @functools.cached_property
    def shardings(self) -> dict[str, Any]:
        """Where each of them lies."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.shapes)

    def begin(self) -> dict[str, Any]:
        """Parameters and optimizer state before the first step, placed."""
        params = self.work.params(self.shardings["params"], self.options.seed)
        mask = None
        if (fraction := self.options.set.get("keep_fraction")) is not None:
            mask = largest_entries(params, fraction)
        # The mask is an operand: it would be a constant of the program otherwise.
        init = lambda params, mask: self._tx(mask).init(params)
        state = jax.jit(init, out_shardings=self.shardings["state"])(params, mask)
        return {"params": params, "state": state}

    def step(self) -> Callable:
        """From a run, a batch and the steps done: the next run, and scalars."""
        tx = self._tx(all_entries(self.shapes["params"]))
        seed, loss_of = self.options.seed, self.work.problem.loss

        def step(run: Any, batch: Any, done: Any) -> tuple[Any, dict[str, jax.Array]]:
            key = jax.random.fold_in(jax.random.key(seed), done)
            loss, grads = jax.value_and_grad(loss_of)(run["params"], batch, key)
            updates, state = tx.update(grads, run["state"], run["params"])
            params = optax.apply_updates(run["params"], updates)
            seen = {"loss": loss, **ot.metrics(state)}
            return {"params": params, "state": state}, seen

        everywhere = NamedSharding(self.mesh, PartitionSpec())
        where = (self.shardings, everywhere)
        return jax.jit(step, donate_argnums=0, out_shardings=where)

    def _tx(self, mask: Any) -> optax.GradientTransformation:
        options = self.options
        rate = warm_up_then_decay(options.learning_rate, options.steps)
        setup = Setup(rate, options.seed, mask, options.set)
        return RECIPES[options.recipe].build(setup)


def _placed(tree: Any, shardings: Any) -> Any:
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding
    )
    return jax.tree.map(place, tree, shardings)


def train(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Trains to the end, from the newest checkpoint if there is one."""
    work, mesh = open_work(options), make_mesh(options.mesh)
    program = Program(work, options, mesh)
    notes = {"mesh": dict(mesh.shape), "processes": jax.process_count()}
    store = Checkpoints(
        options.out / "checkpoints",
        settings=cli.settings(options, work.settings),
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
    batches = Batches(
        work.problem.train.__getitem__,
        examples=len(work.problem.train),
        batch_size=options.batch_size,
        seed=options.seed,
        mesh=mesh,
    )
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
