"""What a recipe's runs depend on beside the settings: its own source, and no other's.

A recipe's fingerprint covers its chain, its model and its rules with all functions,
classes and constants of this package that they name, and theirs in turn. The encoder
and the training loop are outside; a change to those raises `experiment.REVISION`.
"""

import dataclasses
import dis
import hashlib
import inspect
import types
from collections.abc import Iterator
from typing import Any

from . import encoder, recipes

_PACKAGE = __name__.rpartition(".")[0]
_SHARED = {encoder.__name__}
_CONSTANTS = (bool, int, float, str, tuple)


def fingerprint(recipe: recipes.Recipe) -> str:
    """A hash of all of that."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        # A run states its learning rate itself. Defaults are left out, so that a new
        # field leaves other recipes' runs valid.
        if field.name != "learning_rate" and value != field.default:
            _gather(field.name, value, found)
    text = "\n".join(f"{name}: {source}" for name, source in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _gather(name: str, thing: Any, found: dict[str, str]) -> None:
    """Adds what `thing` is, and whatever it names, to `found`."""
    if isinstance(thing, types.FunctionType | type):
        if not thing.__module__.startswith(_PACKAGE) or thing.__module__ in _SHARED:
            found[name] = thing.__qualname__
        elif (key := f"{thing.__module__}.{thing.__qualname__}") not in found:
            found[name] = found[key] = inspect.getsource(thing)
            for other, value in _named(thing):
                _gather(other, value, found)
    elif dataclasses.is_dataclass(thing):
        found[name] = repr(thing)
        _gather(type(thing).__qualname__, type(thing), found)
    elif thing is None or isinstance(thing, _CONSTANTS):
        found[name] = repr(thing)


def _named(thing: Any) -> Iterator[tuple[str, Any]]:
    """The globals that a function, or a class's methods and bases, refer to."""
    if isinstance(thing, type):
        members = [*vars(thing).values(), *thing.__bases__]
        functions = [m for m in members if isinstance(m, types.FunctionType)]
        yield from ((base.__qualname__, base) for base in thing.__bases__)
    else:
        functions = [thing]
    for function in functions:
        for name in _global_names(function.__code__):
            if name in function.__globals__:
                yield f"{function.__module__}.{name}", function.__globals__[name]


def _global_names(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
