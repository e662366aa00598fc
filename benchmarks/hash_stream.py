"""The raw 32-bit words behind the dropout masks, as a stream for test batteries.

    python -m benchmarks.hash_stream | dieharder -a -g 200
    python -m benchmarks.hash_stream --record benchmarks/results/dieharder.txt

The words come in the order in which training consumes them: every entry of a leaf,
every leaf of a step, step after step. The second form runs dieharder (a Debian
package) over the stream, test by test, and writes its report; it takes about an
hour and goes on where it was interrupted.
"""

import argparse
import collections
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from optaxtricks._core.counter_hash import entry_words, leaf_words, step_words

PATHS = ("embedding", "layer/0/kernel", "layer/1/kernel", "layer/1/bias")
ENTRIES = 2**18
VERDICTS = ("PASSED", "WEAK", "FAILED")

# What `dieharder -a` runs, but for the test that its authors call broken (14).
TESTS = (
    *(f"-d {n}" for n in (*range(14), 15, 16, 17, 100, 101, 102)),
    *(f"-d 200 -n {n}" for n in range(1, 13)),
    *(f"-d {test} -n {n}" for test in (201, 202) for n in range(2, 6)),
    *(f"-d {n}" for n in (204, 205, 206, 207, 208, 209)),
    *(f"-d 203 -n {n}" for n in range(33)),
)


@functools.partial(jax.jit, static_argnums=0)
def words_of_step(entries: int, seeds: jax.Array, step: jax.Array) -> jax.Array:
    """All words of all leaves at one step, in order."""
    like = jax.ShapeDtypeStruct((entries,), np.dtype(np.float32))
    of_leaf = lambda seed: entry_words(like, seed ^ step_words(step), "element")
    return jax.vmap(of_leaf)(seeds).ravel()


def write_stream(sink: BinaryIO, *, key: int, entries: int, steps: int | None) -> None:
    """Writes little-endian words to `sink`, for ever or for `steps` steps."""
    seeds = jnp.stack(leaf_words(key, PATHS))
    step = 0
    while steps is None or step < steps:
        words = words_of_step(entries, seeds, jnp.asarray(step, jnp.uint32))
        sink.write(np.asarray(words).astype("<u4").tobytes())
        step += 1


def record(report: Path, *, key: int, entries: int) -> None:
    """Runs dieharder's tests over fresh streams, one after another.

    Each verdict is added to the report when it is there; a second call goes on.
    """
    if shutil.which("dieharder") is None:
        sys.exit("dieharder is not installed; it is a Debian package of that name.")
    report.parent.mkdir(parents=True, exist_ok=True)
    if not report.exists():
        leaves = f"leaves of {entries} entries: {', '.join(PATHS)}"
        report.write_text(f"# key {key}; {leaves}\n# test flags | dieharder's line\n")
    for test in TESTS:
        if f"\n{test} |" not in report.read_text():
            with report.open("a") as file:
                file.writelines(
                    f"{test} | {line}\n" for line in _verdicts(test, key, entries)
                )
    verdict = re.compile(r"(PASSED|WEAK|FAILED)\s*$", re.MULTILINE)
    print(dict(collections.Counter(verdict.findall(report.read_text()))))


def _verdicts(test: str, key: int, entries: int) -> list[str]:
    flags = [f"--key={key}", f"--entries={entries}"]
    command = [sys.executable, "-m", "benchmarks.hash_stream", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stream:
        battery = subprocess.run(
            ["dieharder", "-g", "200", *test.split()],
            stdin=stream.stdout,
            stdout=subprocess.PIPE,
            text=True,
        )
        stream.kill()
    lines = battery.stdout.splitlines()
    return [line for line in lines if line.rstrip().endswith(VERDICTS)]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the stream to standard output, or records a battery's verdicts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key", type=int, default=0)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--record", type=Path, help="run dieharder; write its report")
    options = parser.parse_args(argv)
    if options.record:
        return record(options.record, key=options.key, entries=options.entries)
    try:
        write_stream(
            sys.stdout.buffer,
            key=options.key,
            entries=options.entries,
            steps=options.steps,
        )
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
    return None


if __name__ == "__main__":
    main()
