"""Reading batches: one pytree of arrays, or a stream of them, checked one at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .paths import joined

Layout = tuple[Any, list[tuple[Any, int]]]


def batches_of(batches: Any, *, name: str = "batches") -> Iterable[Any]:
    """The stream that an argument `name` stands for, unread.

    A list is a stream of batches. An array, and any other container that JAX
    flattens (dict, tuple, NamedTuple, dataclass), is one batch. Anything else that
    can be iterated over is a stream of batches.

    Raises:
      TypeError: it is none of these.
      ValueError: a tuple of equal containers, which could be either.
    """
    if isinstance(batches, list | Iterator):
        return batches
    if _is_array(batches):
        return [batches]
    if _is_container(batches):
        _reject_ambiguous(batches, name)
        return [batches]
    iterable = hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")
    if not iterable or isinstance(batches, str | bytes):
        raise TypeError(
            f"{name} must be one pytree of arrays or an iterable of such pytrees, "
            f"got {batches!r}."
        )
    return batches


def checked_batches(
    stream: Iterable[Any], *, name: str = "batches"
) -> Iterator[tuple[int, Any]]:
    """Yields (number of examples, batch of arrays), reading one batch at a time.

    Raises:
      ValueError: no batch at all, a batch without arrays or examples, leaves of
        different leading size, or a batch unlike the first one.
      TypeError: a leaf that is no array of numbers.
    """
    first: Layout | None = None
    for i, raw in enumerate(stream):
        where = f"{name}: batch {i}"
        leaves, treedef = jax.tree.flatten_with_path(raw, is_leaf=_is_iterator)
        paths = [joined(key_path) for key_path, _ in leaves]
        arrays = [_as_array(x, joined(key_path), where) for key_path, x in leaves]
        size = _leading_size(arrays, paths, where)
        layout = treedef, [(jnp.result_type(x), x.ndim) for x in arrays]
        if first is not None and layout != first:
            # Other sizes only cost a compilation; another layout is a mistake, as
            # when one batch [inputs, labels] is read as two.
            raise ValueError(
                f"{where} is laid out as {layout}, but batch 0 as {first}. A list is "
                "read as a sequence of batches; give one batch as a tuple or dict."
            )
        first = layout
        yield size, jax.tree.unflatten(treedef, arrays)
    if first is None:
        raise ValueError(f"{name} is empty: at least one batch is needed.")


def with_progress(
    stream: Iterable[Any],
    description: str,
    *,
    total: int | None = None,
    live_only: bool = False,
) -> Iterable[Any]:
    """The same stream behind a progress bar on the terminal.

    Where nothing is redrawn, as in a log file, one line stands at the end, and none
    at all with `live_only`.

    Raises:
      ImportError: rich is not installed.
    """
    try:
        from rich import get_console
        from rich.progress import track
    except ImportError:
        raise ImportError(
            "progress=True needs rich; install it with "
            "`pip install 'optaxtricks[demo]'` or leave progress off."
        ) from None
    console = get_console()
    silent = live_only and not (console.is_terminal or console.is_jupyter)
    return track(stream, description=description, total=total, disable=silent)


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape") and hasattr(node, "dtype")


def _is_iterator(node: Any) -> bool:
    # JAX is to stop flattening trees with iterators in them, and warns already.
    return isinstance(node, Iterator)


def _is_container(node: Any) -> bool:
    return jax.tree.structure(node, is_leaf=_is_iterator) != jax.tree.structure(0)


def _reject_ambiguous(batches: Any, name: str) -> None:
    """Rejects a tuple of containers of one structure: one batch, or several?"""
    if type(batches) is not tuple or not batches:
        return
    if not all(map(_is_container, batches)):
        return
    if len({jax.tree.structure(part, is_leaf=_is_iterator) for part in batches}) == 1:
        raise ValueError(
            f"{name} is ambiguous: a tuple of containers of one structure is one "
            "batch or several. Give several batches as a list, [first, second], and "
            "one batch as a list of length one, [batch]."
        )


def _as_array(leaf: Any, path: str, where: str) -> Any:
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    if not isinstance(array, jax.Array) and not (
        jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_
    ):
        raise TypeError(
            f"{where} must hold arrays of numbers, but its leaf at {path!r} is a "
            f"{type(leaf).__name__} of dtype {array.dtype}."
        )
    return array


def _leading_size(arrays: list[Any], paths: list[str], where: str) -> int:
    if not arrays:
        raise ValueError(f"{where} holds no arrays.")
    for array, path in zip(arrays, paths, strict=True):
        if array.ndim == 0:
            raise ValueError(
                f"{where}: the leaf at {path!r} is a scalar; every leaf needs a "
                "leading axis that counts examples."
            )
    sizes = {path: array.shape[0] for array, path in zip(arrays, paths, strict=True)}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{where} has leaves of different leading sizes: {sizes}.")
    if 0 in sizes.values():
        raise ValueError(f"{where} holds no examples.")
    return arrays[0].shape[0]
