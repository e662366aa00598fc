"""The one place where an `init` and an `update` become an Optax transformation."""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import optax

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
    init: Callable[[optax.Params], S], update: Update[S]
) -> optax.GradientTransformationExtraArgs:
    """Pairs `init` with `update`; a type checker sees that their states agree.

    Optax's own constructor wants functions of *any* state, which no typed
    closure is; the two casts live here so that no other file needs one.
    """
    return optax.GradientTransformationExtraArgs(
        cast(optax.TransformInitFn, init),
        cast(optax.TransformUpdateExtraArgsFn, update),
    )
