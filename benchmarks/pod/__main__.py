"""The command `python -m benchmarks.pod`."""

import sys

import jax

from ..checkpoints import CheckpointError
from ..finetune.errors import InputError
from . import hosts
from .cli import parse
from .plan_report import show
from .train import train


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    try:
        options = parse(argv)
        if options.compilation_cache is not None:
            cache = str(options.compilation_cache.absolute())
            jax.config.update("jax_compilation_cache_dir", cache)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        if options.plan is not None:
            jax.config.update("jax_platforms", "cpu")  # no other device is looked for
            return show(options)
        hosts.connect(options)
        train(options, _say if jax.process_index() == 0 else _silent)
    except (InputError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the next start goes on from a checkpoint", file=sys.stderr)
        return 130
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _silent(line: str) -> None:
    del line


if __name__ == "__main__":
    sys.exit(main())
