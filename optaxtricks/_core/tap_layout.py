"""Which axis of a tap counts examples: the first one that does not count layers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .layers import Stacked, layer_axes
from .paths import leaves_with_paths
from .reread import Known
from .shardings import typed_sharding
from .tap_manifest import Spec


def tap_specs(
    run: Callable[[Any], Any], data: Known, *, stacked: Stacked | None, dtype: Any
) -> tuple[Any, list[Spec]]:
    """The containers of the taps, and what is stored of each, from shapes alone.

    Raises:
      ValueError: no taps, or one without an axis that counts examples.
    """
    out, size = jax.eval_shape(run, data.first), data.sizes[0]
    axes = layer_axes(out, stacked)
    taps = [
        _Tap(path, tap.shape, tap.dtype, layer)
        for (path, tap), layer in zip(leaves_with_paths(out), axes, strict=True)
    ]
    if not taps:
        raise ValueError("backbone_fn returns no arrays.")
    for tap in taps:
        _check_size(tap, size)
    structure = jax.tree.structure(out)
    # There may be as many layers as examples, but not when there are more examples.
    for other in [2 * size, *(n for n in dict.fromkeys(data.sizes) if n != size)]:
        again = _traced(run, data.first, other)
        if jax.tree.structure(again) == structure:
            for tap, (_, leaf) in zip(taps, leaves_with_paths(again), strict=True):
                _check_growth(tap, leaf.shape, size, other)
            break
    return structure, [
        Spec(
            tap.path,
            stored_dtype(tap.dtype, dtype).name,
            (*tap.shape[: tap.axis], *tap.shape[tap.axis + 1 :]),
            tap.axis,
        )
        for tap in taps
    ]


def stored_dtype(found: Any, dtype: Any) -> np.dtype:
    """The dtype in which a tap is stored, given one for floating taps or None."""
    floating = dtype is not None and jnp.issubdtype(found, jnp.floating)
    return np.dtype(dtype if floating else found)


class _Tap(NamedTuple):
    """A tap as the backbone gives it for a batch."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    layer: int | None

    @property
    def axis(self) -> int:
        """The axis that is to count examples."""
        return 1 if self.layer == 0 else 0


def _check_size(tap: _Tap, size: int) -> None:
    """Rejects a tap whose axis of examples is of another size, or not there."""
    if tap.shape[tap.axis : tap.axis + 1] == (size,):
        return
    wanted = f"with layers on axis {tap.layer} its axis {tap.axis} must count"
    cure = ""
    if tap.layer is None:
        wanted = "its leading axis must count"
        cure = "; if it counts layers, name the tap in stacked="
    raise ValueError(
        f"backbone_fn gives the tap at {tap.path!r} shape {tap.shape}, but {wanted} "
        f"the {size} examples of the batch{cure}."
    )


def _traced(run: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Shapes of the taps of another number of examples; None if it cannot be had."""

    resized = lambda x: jax.ShapeDtypeStruct(
        (size, *x.shape[1:]), jnp.result_type(x), sharding=typed_sharding(x)
    )
    try:
        return jax.eval_shape(run, jax.tree.map(resized, batch))
    except Exception:  # it is not made for so many examples, and says so in its way
        return None


def _check_growth(tap: _Tap, grown: tuple[int, ...], size: int, other: int) -> None:
    """Rejects a tap whose axis of examples does not follow their number."""
    given = (
        f"backbone_fn gives the tap at {tap.path!r} shape {tap.shape} for {size} "
        f"examples and {grown} for {other}, so its"
    )
    if grown[tap.axis : tap.axis + 1] != (other,):
        cure = "stacked must name the axis that counts layers."
        if tap.layer is None:
            cure = "If it counts layers, name the tap in stacked=."
        raise ValueError(f"{given} axis {tap.axis} does not count examples. {cure}")
    if tap.layer is not None and grown[tap.layer] != tap.shape[tap.layer]:
        raise ValueError(
            f"{given} axis {tap.layer} does not count layers, as stacked says."
        )
