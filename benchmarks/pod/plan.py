"""What a step would need on machines that are not there, by their own compilers."""

import argparse
import dataclasses
import resource
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ..compiled.chips import Chip, chip_of, links_of
from ..compiled.collectives import Collective, collectives
from ..compiled.flops import flops
from ..compiled.hlo import parse
from ..compiled.kept import compiled
from ..compiled.steps import bytes_on_a_device
from ..compiled.targets import Target
from ..compiled.traffic import traffic
from ..finetune.errors import InputError
from .mesh import make_mesh
from .program import Program
from .work import open_work

LARGEST = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A step that was compiled, or refused. All figures are of one chip and one step.

    Attributes:
      settings: of the step: target, mesh, model, recipe and so on.
      tokens: of its batch.
      chip: what it would run on.
      links: of a chip to others.
      held: bytes of the parameters, the optimizer's state, the batch and, among the
        temporaries at their largest, the gradients.
      arguments: bytes of all arguments as they lie in memory; None if refused.
      temporaries: bytes beside them.
      refusal: the compiler's words, if it refused.
      largest: of the arguments the largest leaves, with their bytes.
      flops: of matrix products, recomputed ones included.
      moved: bytes that the schedule reads and writes in memory.
      exchanges: what is sent to other chips.
      seconds: of tracing and compiling.
      compiler_memory: the most bytes that this process ever held.
    """

    settings: dict[str, Any]
    tokens: int
    chip: Chip
    links: int
    held: dict[str, int]
    arguments: int | None = None
    temporaries: int = 0
    refusal: str | None = None
    largest: list[tuple[str, int]]
    flops: int = 0
    moved: int = 0
    exchanges: list[Collective] = dataclasses.field(default_factory=list)
    seconds: float
    compiler_memory: int

    @property
    def total(self) -> int | None:
        """Bytes of memory that a step needs."""
        return None if self.arguments is None else self.arguments + self.temporaries

    @property
    def padding(self) -> int:
        """Bytes by which arguments are larger in memory than written one by one."""
        given = sum(self.held[name] for name in ("parameters", "state", "batch"))
        return 0 if self.arguments is None else self.arguments - given

    @property
    def fits(self) -> bool:
        """Whether the compiler, and the chip's memory, have room for it."""
        return self.total is not None and self.total <= self.chip.memory

    @property
    def sent(self) -> float:
        """Bytes that a chip sends."""
        return sum(one.times * one.sent for one in self.exchanges)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that a step takes at least, by each of the chip's peaks."""
        speed = self.links * self.chip.link
        return {
            "compute": self.flops / self.chip.flops,
            "memory": self.moved / self.chip.bandwidth,
            "links": self.sent / speed if speed else 0.0,
        }

    def by_kind(self) -> list[dict[str, Any]]:
        """Collectives by their kind and the axes of the mesh they run over."""
        found: dict[tuple[str, str], list[Collective]] = {}
        for one in self.exchanges:
            found.setdefault((one.kind, one.axes), []).append(one)
        return [
            {
                "kind": kind,
                "axes": axes,
                "runs": sum(one.times for one in ones),
                "sent": (sent := sum(one.times * one.sent for one in ones)),
                "sent by link": sent / max(1, self.links),
            }
            for (kind, axes), ones in sorted(found.items())
        ]


def plan(options: argparse.Namespace) -> Plan:
    """Compiles a step for a target with abstract arguments.

    Raises:
      InputError: no such target, or a mesh or batch that does not fit it or the model.
    """
    start = time.perf_counter()
    mesh = plan_mesh(options)
    if options.batch_size is None:  # one example for each group of devices
        options.batch_size = mesh.shape["data"] * options.microbatches
    program = Program(open_work(options, mesh), options, mesh)
    common = {
        "settings": _settings(program),
        "tokens": options.batch_size * program.work.length,
        "chip": chip_of(options.plan),
        "links": links_of(options.plan),
        "held": _held(program),
        "largest": _largest(program.shapes),
    }
    done = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = program.step().lower(program.shapes, program.batch, done)
    tracing = time.perf_counter() - start
    machine = f"{options.plan} {dict(mesh.shape)}"
    try:
        made = compiled(lowered, machine, kernels=False, folder=options.plan_cache)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        figures: dict[str, Any] = {"refusal": str(error).strip()}
        seconds = time.perf_counter() - start
    else:
        module = parse(made.text)
        seen = traffic(module)
        seconds = tracing + made.seconds
        figures = {
            "arguments": made.arguments,
            "temporaries": made.temporaries,
            "flops": flops(module, seen),
            "moved": seen.moved,
            "exchanges": collectives(module, list(mesh.shape.items())),
        }
    return Plan(
        **common,
        **figures,
        seconds=seconds,
        compiler_memory=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def plan_mesh(options: argparse.Namespace) -> Mesh:
    """The devices of a target, as the flags divide them, or all for the data."""
    try:
        chip_of(options.plan)
        devices = Target(options.plan).devices()
    except (ModuleNotFoundError, ValueError) as error:
        raise InputError(f"--plan: {error}") from None
    return make_mesh(options.mesh, devices)


def _settings(program: Program) -> dict[str, Any]:
    options = program.options
    names = ("model", "recipe", "batch_size", "microbatches", "remat")
    given = {name: getattr(options, name) for name in names}
    places = {"target": options.plan, "mesh": dict(program.mesh.shape)}
    return {**places, **given, **program.work.settings, **options.set}


def _held(program: Program) -> dict[str, int]:
    shapes = program.shapes
    return {
        "parameters": bytes_on_a_device(shapes["params"]),
        "state": bytes_on_a_device(shapes["state"]),
        "batch": bytes_on_a_device(program.batch),
        "gradients": bytes_on_a_device(program.trained),
    }


def _largest(shapes: Any) -> list[tuple[str, int]]:
    sizes = [
        (
            jax.tree_util.keystr(path, simple=True, separator="/"),
            bytes_on_a_device(leaf),
        )
        for path, leaf in jax.tree.leaves_with_path(shapes)
    ]
    return sorted(sizes, key=lambda pair: -pair[1])[:LARGEST]
