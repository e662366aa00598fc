"""How the processes of a run find each other."""

import argparse
import os
import socket
import time

import jax

from ..finetune.errors import InputError


def connect(options: argparse.Namespace) -> None:
    """Joins this process to the run's others, if it has any.

    Nothing may have touched a device before, as JAX asks for it.
    """
    # Between CPUs; accelerators have collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if options.distributed:
        arguments = {}
    elif options.coordinator is not None:
        if options.process_id > 0:
            _wait_for_first(options.coordinator, options.timeout)
        arguments = {
            "coordinator_address": options.coordinator,
            "num_processes": options.processes,
            "process_id": options.process_id,
        }
    else:
        return
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=options.timeout)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes did not meet: {first_line(error)}") from None


def _wait_for_first(address: str, timeout: int) -> None:
    """Waits until process 0 answers; where it never does, JAX would abort."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=timeout).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise InputError(
                    f"process 0 does not answer at {address} within {timeout} seconds."
                ) from None
            time.sleep(0.2)


def check(options: argparse.Namespace) -> None:
    """Fills in what the environment says, and checks that it fits together."""
    names = ("coordinator", "processes", "process_id")
    given = [name for name in names if getattr(options, name) is not None]
    if options.distributed:
        if given:
            raise InputError(f"--distributed and {_flag(given[0])} exclude each other.")
        return
    for name, variable in (
        ("coordinator", "JAX_COORDINATOR_ADDRESS"),
        ("processes", "JAX_NUM_PROCESSES"),
        ("process_id", "JAX_PROCESS_ID"),
    ):
        if not given and variable in os.environ:
            value = os.environ[variable]
            setattr(options, name, value if name == "coordinator" else _whole(value))
    missing = [name for name in names if getattr(options, name) is None]
    if 0 < len(missing) < len(names):
        raise InputError(
            f"{_flag(missing[0])} is missing: --coordinator, --processes and "
            "--process-id belong together."
        )
    if missing:
        return
    host, _, port = options.coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(
            f"--coordinator: must be HOST:PORT, got {options.coordinator!r}."
        )
    if options.process_id >= options.processes:
        raise InputError(
            f"--process-id: must lie in [0, {options.processes}), "
            f"got {options.process_id}."
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise InputError(f"the environment's {text!r} is no count of processes.")
    return int(text)


def first_line(error: BaseException) -> str:
    """An error's text, cut to one line."""
    return (str(error) or type(error).__name__).splitlines()[0]
