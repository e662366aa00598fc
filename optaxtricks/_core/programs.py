"""What traced programs are made of, imported on use: JAX's module for it takes long."""

import importlib
import typing
from typing import Any

if typing.TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr as ClosedJaxpr
    from jax.extend.core import Jaxpr as Jaxpr
    from jax.extend.core import Literal as Literal
    from jax.extend.core import jaxpr_as_fun as jaxpr_as_fun
else:

    def __getattr__(name: str) -> Any:
        return getattr(importlib.import_module("jax.extend.core"), name)
