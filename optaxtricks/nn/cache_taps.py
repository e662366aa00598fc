"""The taps of a frozen backbone, computed once for all epochs of training."""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks, tap_files, tap_manifest
from .._core.batches import with_progress
from .._core.fingerprints import tree_digest
from .._core.layers import Stacked
from .._core.reread import Known, known, rereadable
from .._core.tap_layout import stored_dtype, tap_specs
from .._core.tap_manifest import Manifest, Spec, as_given
from .tap_cache import TapCache

_logger = logging.getLogger(__name__)

Step = Callable[[Any], tuple[list[Any], list[Any]]]
Sink = Callable[[list[np.ndarray]], None]


def cache_taps(
    backbone_fn: Callable[..., Any],
    batches: Any,
    *,
    params: Any = None,
    batch_size: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    dtype: Any = None,
    stacked: Stacked | None = None,
    progress: bool = False,
) -> TapCache:
    r"""Runs a frozen backbone once over the data and keeps its taps.

    A ladder reads activations :math:`\mathrm{tap}_i(x)` of a backbone that does not
    change, so they are the same in every epoch. Computed once, they leave to training
    the side network alone: no forward pass of the backbone, and none of its memory.
    ``backbone_fn`` must be deterministic: switch dropout off, and do not augment
    ``batches``.

    The size is known before anything runs, from the shapes for the first batch; it is
    logged at level INFO (logger ``optaxtricks.nn.cache_taps``), shown by the progress
    bar, and is :attr:`TapCache.nbytes` afterwards. In a folder the taps are one raw
    file each, appended to in blocks of 64 MiB or 30 seconds. A block counts once it
    is flushed to the disk and the manifest, replaced in one step after that, has its
    checksums.

    Guarantees:
      - The order is that of the data, and an example's taps are those of
        ``backbone_fn`` for its batch, bit for bit (but for ``dtype``), in memory and
        in a folder, interrupted or not.
      - Called again on its folder it computes nothing: it compares parameters and
        data by their digests and verifies all checksums. A run that was killed, or
        that filled the disk, goes on after its last block.
      - A cache of other parameters, data or taps, or with a byte missing or changed,
        is refused. Code is not compared: for a ``backbone_fn`` that computes something
        else in the same shapes take a new folder.
      - Layers are not taken for examples, though there be as many of both: the axis
        of examples is the one that grows when ``backbone_fn`` is traced for more of
        them. One that can be traced for a single size of batch is believed.
      - Memory does not grow with the data if there is a folder.

    Args:
      backbone_fn: ``(params, batch) -> taps`` if ``params`` is given; it is compiled
        here, with both as arguments. Otherwise ``batch -> taps``, called as it is
        (``jit`` it yourself; arrays it closes over are then constants of the program)
        after it was traced for its shapes, of one batch and of twice as many examples.
        The taps are arrays in any containers, each with the leading example axis of
        the batch, or as ``stacked`` says. In a folder the containers are dicts, lists
        and tuples.
      batches: one batch or a stream of them, as in :func:`fisher_information`. It is
        read twice, first to count and digest it, and must give the same both times:
        no shuffling. An iterator or generator is held in memory, and is an error with
        ``folder``. The last batch may be smaller.
      params: parameters of the frozen backbone, any pytree of arrays (for NNX:
        ``graph, params = nnx.split(model)``). A folder needs them, to tell whether
        its taps are still theirs.
      batch_size: cuts one big batch, a pytree with all the data, into batches.
      folder: where to keep the taps: a new or empty folder, or that of an earlier
        call. None for memory.
      dtype: the floating dtype in which floating taps are stored, such as
        ``jnp.bfloat16``. None stores them as they are.
      stacked: which taps have an axis of layers, as a backbone under ``lax.scan`` or
        ``nn.scan`` gives all its layers in one array ``(layers, batch, ...)``: a
        selector, for layers on axis 0, or pattern -> axis. The first other axis counts
        examples.
      progress: show a progress bar on a terminal; needs rich.

    Returns:
      A :class:`TapCache`. ``cache[rows]`` gives the taps of these examples, laid out
      as ``backbone_fn`` gives them for a batch.

    Raises:
      ValueError: an argument out of range; a tap whose leading axis, or the first that
        ``stacked`` does not give to layers, does not count examples; one of another
        shape than in the first batch (pad to one length); a finite tap that overflows
        ``dtype``; batches that differ the second time; a folder with other things in
        it, or a cache that is stale, damaged, or being written.
      TypeError: an argument of the wrong kind.
      OSError: the disk has not room enough, or filled up. What is stored stays.
      ImportError: ``progress=True`` without rich.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> backbone = lambda params, x: [x * params["w"], x + params["w"]]
      >>> tokens = jnp.arange(5.0)
      >>> cache = ot.nn.cache_taps(
      ...     backbone, tokens, params={"w": jnp.array(2.0)}, batch_size=2
      ... )
      >>> [tap.tolist() for tap in cache[1:4]], cache.nbytes
      ([[2.0, 4.0, 6.0], [3.0, 4.0, 5.0]], 40)

      A backbone that gives two layers in one array:

      >>> scanned = lambda x: {"layers": jnp.stack([x + 1, 2 * x])}
      >>> cache = ot.nn.cache_taps(scanned, tokens, stacked="layers")
      >>> cache[1:4]["layers"].tolist()
      [[2.0, 3.0, 4.0], [2.0, 4.0, 6.0]]

    References:
      Sung et al., 2022, `LST: Ladder Side-Tuning for Parameter and Memory Efficient
      Transfer Learning <https://arxiv.org/abs/2206.06522>`_ (which runs the backbone
      in every step).
    """
    checks.function(backbone_fn=backbone_fn)
    if folder is not None:
        checks.path(folder=folder)
    if folder is not None and params is None:
        raise ValueError(
            "folder needs params: without them a cache of another checkpoint could not "
            "be told from this one."
        )
    checks.flag(progress=progress)
    dtype = checks.float_dtype(dtype=dtype)
    stream = rereadable(batches, batch_size, may_hold=folder is None)
    data = known(stream)
    one = backbone_fn if params is None else _with(backbone_fn, params)
    structure, specs = tap_specs(one, data, stacked=stacked, dtype=dtype)
    axes = [spec.axis for spec in specs]
    steps = _Steps(data, specs, _step(backbone_fn, params, dtype, axes))
    nbytes = data.examples * sum(spec.row_bytes for spec in specs)
    title = f"Caching taps ({tap_files.size_text(nbytes)})"
    if progress:
        total = len(data.sizes)
        stream = with_progress(stream, title, total=total, live_only=True)
    if folder is None:
        _logger.info("%s in memory", title)
        return TapCache(_in_memory(steps, stream), structure, axes)
    numbered = jax.tree.unflatten(structure, range(len(specs)))
    wanted = Manifest(
        params=tree_digest(params),
        data=data.digest,
        examples=data.examples,
        layout=tap_manifest.to_json(numbered),
        taps=specs,
    )
    _in_folder(steps, stream, Path(folder), wanted, title)
    return TapCache.open(folder)


class _Steps(NamedTuple):
    """All that turns the second reading of the data into rows of taps."""

    data: Known
    specs: list[Spec]
    step: Step

    def run(self, batches: Iterable[Any], done: int, sink: Sink) -> None:
        """Hands the taps of all examples but the first `done` to `sink`."""
        waiting = None
        for number, size, batch in self.data.again(batches, done=done):
            taps = size, number, self.step(batch)
            # The device computes these while the host stores the ones before.
            if waiting is not None:
                sink(self._checked(*waiting))
            waiting = taps
        if waiting is not None:
            sink(self._checked(*waiting))

    def _checked(self, size: int, number: int, out: Any) -> list[np.ndarray]:
        taps, lost = jax.device_get(out)
        for spec, tap, overflow in zip(self.specs, taps, lost, strict=True):
            shape, dtype = (size, *spec.shape), np.dtype(spec.dtype)
            if (tap.shape, tap.dtype) != (shape, dtype):
                now, then = [as_given(x, spec.axis) for x in (tap.shape, shape)]
                raise ValueError(
                    f"taps of batch {number}: the one at {spec.path!r} is {tap.dtype}"
                    f"{now} instead of {dtype}{then}, as for batch 0. Examples must be "
                    "padded to one length."
                )
            if overflow:
                raise ValueError(
                    f"taps of batch {number}: the one at {spec.path!r} has finite "
                    f"numbers too large for dtype {dtype}; take bfloat16 or float32."
                )
        return taps


def _with(backbone_fn: Callable[..., Any], params: Any) -> Callable[[Any], Any]:
    return lambda batch: backbone_fn(params, batch)


def _step(
    backbone_fn: Callable[..., Any], params: Any, dtype: Any, axes: list[int]
) -> Step:
    """From a batch to its stored taps, and whether each has overflowed."""

    def stored(*arguments: Any) -> tuple[list[Any], list[Any]]:
        leaves = jax.tree.leaves(backbone_fn(*arguments))
        pairs = zip(leaves, axes, strict=True)
        taps = [jnp.moveaxis(jnp.asarray(x), axis, 0) for x, axis in pairs]
        small = [x.astype(stored_dtype(x.dtype, dtype)) for x in taps]
        lost = [
            (jnp.isfinite(x) & ~jnp.isfinite(y)).any() if x.dtype != y.dtype else False
            for x, y in zip(taps, small, strict=True)
        ]
        return small, lost

    if params is None:
        return stored
    compiled = jax.jit(stored)
    return lambda batch: compiled(params, batch)


def _in_memory(steps: _Steps, batches: Iterable[Any]) -> list[np.ndarray]:
    examples = steps.data.examples
    arrays = [np.empty((examples, *s.shape), s.dtype) for s in steps.specs]
    rows = 0

    def sink(taps: list[np.ndarray]) -> None:
        nonlocal rows
        for array, tap in zip(arrays, taps, strict=True):
            array[rows : rows + len(tap)] = tap
        rows += len(taps[0])

    steps.run(batches, 0, sink)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _in_folder(
    steps: _Steps, batches: Iterable[Any], folder: Path, wanted: Manifest, title: str
) -> None:
    found = tap_manifest.load(folder)
    if found is not None:
        found.reject_other(wanted, folder)
        if found.complete:
            _logger.info("the taps in %r are those wanted; nothing to do", str(folder))
            return
    with tap_files.TapWriter(folder, wanted) as writer:
        if writer.manifest.complete:  # by a process that ended just now
            return
        done = writer.manifest.rows
        _logger.info("%s in %r, %d examples are there", title, str(folder), done)
        steps.run(batches, done, writer.append)
        writer.finish()
