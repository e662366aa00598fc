"""The one place where an `init` and an `update` become an Optax transformation."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import optax

from .paths import OneLeaf, flatten, leaves_with_paths

S = TypeVar("S")


class Update(Protocol[S]):
    """An update function over the exact state type `S`."""

    def __call__(
        self,
        updates: optax.Updates,
        state: S,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, S]:
        """Returns the changed updates and the next state."""
        ...


def transformation(
    init: Callable[[optax.Params], S], update: Update[S], *, one_leaf: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Pairs `init` with `update`; a type checker sees that their states agree.

    Unless `one_leaf` says that `update` knows of them, updates that hold nodes which
    stand for one leaf, as a RowSparse does, are an error: taken for the arrays that
    they are made of, they would come out wrong.

    Optax's own constructor wants functions of *any* state, which no typed
    closure is; the two casts live here so that no other file needs one.
    """
    return optax.GradientTransformationExtraArgs(
        cast(optax.TransformInitFn, init),
        cast(
            optax.TransformUpdateExtraArgsFn,
            update if one_leaf else _of_arrays(update),
        ),
    )


def _of_arrays(update: Update[S]) -> Update[S]:
    """The update function, for trees of arrays alone."""

    @functools.wraps(update)
    def checked(
        updates: optax.Updates,
        state: S,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, S]:
        if any(isinstance(leaf, OneLeaf) for leaf in flatten(updates)[0]):
            _refuse(updates)
        return update(updates, state, params, **extra_args)

    return checked


def _refuse(updates: Any) -> None:
    named = leaves_with_paths(updates)
    path, leaf = next(one for one in named if isinstance(one[1], OneLeaf))
    raise TypeError(
        f"the gradient at {path!r} is a {type(leaf).__name__}, which only lazy_rows "
        "takes: put this transformation inside lazy_rows, or let optax.partition keep "
        "it from that leaf."
    )
