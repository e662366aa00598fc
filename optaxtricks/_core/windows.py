"""Accumulation windows: several calls of `update` that make one optimizer step.

An optimizer that accumulates says so in its state, by a node that counts the calls of
a window.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

K = TypeVar("K", bound=type)
Place = Literal["outside", "rests", "sums", "moves"]
"""Whether a part of a state knows of no window, changes at a window's end only, starts
anew there, or does neither."""


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Of a state that counts calls, the names of its fields.

    Attributes:
      call: the number of earlier calls in the window; None where it has one call.
      rests: what changes at the window's end only.
      sums: what starts anew with a window.
    """

    call: str
    rests: str | None = None
    sums: str | None = None

    def place(self, field: str) -> Place:
        """What the window does to a field."""
        found: dict[str | None, Place] = {self.rests: "rests", self.sums: "sums"}
        return found.get(field, "moves")


_KINDS: dict[type, _Fields] = {
    optax.MultiStepsState: _Fields("mini_step", "inner_opt_state", "acc_grads"),
    optax.ApplyEvery: _Fields("count", None, "grad_acc"),
}


def counts_calls(*, rests: str | None = None) -> Callable[[K], K]:
    """Marks a NamedTuple whose field `call` is its place in a window."""

    def mark(kind: K) -> K:
        _KINDS[kind] = _Fields("call", rests)
        return kind

    return mark


def first_call(accumulate_steps: int) -> jax.Array | None:
    """The field `call` of a first state; None where every call is a step."""
    return jnp.zeros((), jnp.int32) if accumulate_steps > 1 else None


def next_call(call: jax.Array, accumulate_steps: int) -> tuple[jax.Array, jax.Array]:
    """Whether a call is the last one of its window, and the next call's number."""
    ends = call == np.int32(accumulate_steps - 1)
    return ends, jnp.where(ends, np.int32(0), call + np.int32(1))


def calls(state: Any) -> list[jax.Array]:
    """The places in their windows of all parts of a state that count calls."""
    found = []
    for node in jax.tree.leaves(state, is_leaf=_is_window):
        if _is_window(node):
            found += [getattr(node, _KINDS[type(node)].call), *calls(tuple(node))]
    return found


ALL = -1
"""All windows of a state. A set of them is the bits of a number, in `calls`' order."""


def ended(state: Any, which: int = ALL) -> jax.Array:
    """Whether these windows are at an end, and so the next call begins new ones."""
    return _all([call == 0 for call in _of(state, which)])


def stood_still(before: Any, after: Any, which: int = ALL) -> jax.Array:
    """Whether none of them moved: the call was skipped, or its window has one call."""
    pairs = zip(_of(before, which), _of(after, which), strict=True)
    return _all([one == two for one, two in pairs])


def _of(state: Any, which: int) -> list[jax.Array]:
    return [call for i, call in enumerate(calls(state)) if which >> i & 1]


def _all(true: list[jax.Array]) -> jax.Array:
    return jnp.stack([*true, np.True_]).all()


def by_place(
    rule: Callable[[Any, Place], Any], tree: Any, place: Place = "outside"
) -> Any:
    """A rule over the leaves of a tree laid out like a state, with their places."""

    def visit(node: Any) -> Any:
        if not _is_window(node):
            return rule(node, place)
        fields = _KINDS[type(node)]
        return type(node)(
            **{
                name: by_place(rule, part, fields.place(name))
                for name, part in node._asdict().items()
            }
        )

    return jax.tree.map(visit, tree, is_leaf=_is_window)


def _is_window(node: Any) -> bool:
    fields = _KINDS.get(type(node))
    return fields is not None and getattr(node, fields.call) is not None
