"""A step of an optimizer, compiled for a target, and what its program shows."""

import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
import optax

import optaxtricks as ot

from .. import harness
from . import kept, memory, ptx
from .hlo import parse
from .traffic import Traffic, traffic


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step.

    Attributes:
      seconds: of tracing and compiling.
      temporaries: bytes of main memory on a device, arguments and results aside.
      params: bytes of the parameters on a device.
      traffic: what its schedule moves, launches and exchanges.
      kernels: registers and spills of CUDA kernels, where they were asked for.
    """

    seconds: float
    temporaries: int
    params: int
    traffic: Traffic
    kernels: list[ptx.Kernel]

    @property
    def figures(self) -> dict[str, Any]:
        """What a table shows of it."""
        seen = self.traffic
        result = {
            "compile s": self.seconds,
            "temp / params": self.temporaries / self.params,
            "moved / least": seen.moved / seen.least,
            "moved MB": seen.moved / 1e6,
            "launches": seen.launches,
            "collectives": len(seen.exchanges),
            "collective MB": sum(one.array.bytes for one in seen.exchanges) / 1e6,
            "loops": len(seen.loops),
        }
        if seen.cycles is not None:
            result["Mcycles"] = seen.cycles / 1e6
        if self.kernels:
            result["registers"] = max(one.registers for one in self.kernels)
            result["spilled B"] = sum(one.spilled for one in self.kernels)
        return result


def compiled_step(
    tx: optax.GradientTransformation,
    params: Any,
    *,
    grads: Any = None,
    kernels: bool = False,
    folder: pathlib.Path | None = None,
) -> Program:
    """Compiles a training step's optimizer part, parameters and state donated.

    Args:
      tx: the optimizer.
      params: abstract, with shardings that tell for which mesh.
      grads: likewise; ``None`` takes the parameters' layout.
      kernels: whether to assemble CUDA kernels once more for their registers.
      folder: where what the compiler made is kept, and found in later runs.
    """
    grads = params if grads is None else grads
    state = abstract_state(tx, params)
    places = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
    jitted = jax.jit(
        harness.training_step(tx), donate_argnums=(0, 1), out_shardings=places
    )
    start = time.perf_counter()
    lowered = jitted.lower(params, state, grads)
    tracing = time.perf_counter() - start
    made = kept.compiled(lowered, _machine(params), kernels=kernels, folder=folder)
    module = parse(made.text)
    return Program(
        seconds=tracing + made.seconds,
        temporaries=min(made.temporaries, memory.temporaries(module)),
        params=bytes_on_a_device(params),
        traffic=traffic(module),
        kernels=made.kernels,
    )


def _machine(params: Any) -> str:
    """The devices of abstract parameters, in words."""
    devices = jax.tree.leaves(params)[0].sharding.mesh.devices
    return f"{devices.shape} {devices.flat[0].device_kind}"


def abstract_state(tx: optax.GradientTransformation, params: Any) -> Any:
    """Shapes of the state, with the shardings that `ot.state_shardings` gives."""
    shapes = jax.eval_shape(tx.init, params)
    put = lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
    )
    return jax.tree.map(put, shapes, ot.state_shardings(tx, params))


def bytes_on_a_device(tree: Any) -> int:
    """Bytes of one shard of each abstract array, added up."""
    part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape))
    return sum(part(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
