"""Our nodes in programs that `jax.export` serializes: a signature names its nodes.

At import, as JAX looks a name up when it reads a program; `import jax` has imported
`jax.export` already.
"""

import contextlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax.export

T = TypeVar("T", bound=type)


def serialized_state(cls: T) -> T:
    """Decorates a NamedTuple that is part of a state."""
    with _once():
        jax.export.register_namedtuple_serialization(cls, serialized_name=_name(cls))
    return cls


def serialized_node(of_json: Callable[[Any], Any]) -> Callable[[T], T]:
    """Decorates a registered node; its fixed part is what `of_json` makes of JSON."""

    def decorate(cls: T) -> T:
        with _once():
            jax.export.register_pytree_node_serialization(
                cls,
                serialized_name=_name(cls),
                serialize_auxdata=lambda fixed: json.dumps(fixed, default=int).encode(),
                deserialize_auxdata=lambda data: of_json(json.loads(data)),
            )
        return cls

    return decorate


def _once() -> contextlib.AbstractContextManager[None]:
    # JAX refuses a name that it knows, which would forbid to reload a module.
    return contextlib.suppress(ValueError)


def _name(cls: type) -> str:
    # Where users find it: files may move between two releases.
    return f"optaxtricks.{cls.__name__}"
