"""Rules for one leaf: of the updates and the momentum, and of what is abstract."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import checks
from .alignment import Beside

Rule = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def over_leaves(rule: Rule, updates: Any, mu: Any, *, by: str) -> tuple[Any, Any]:
    """The new updates and momentum, from a rule for a leaf of each."""
    checks.inexact_leaves(updates, by=by, allow_complex=False)
    leaves, layout = jax.tree.flatten(updates)
    momenta = Beside(mu, updates, by=by)
    pairs = [rule(u, m) for u, m in zip(leaves, momenta.leaves, strict=True)]
    return (
        jax.tree.unflatten(layout, [u for u, _ in pairs]),
        momenta.rebuilt([m for _, m in pairs]),
    )


def made_from(leaf: Any, rule: Callable[[jax.Array], Any]) -> Any:
    """What a rule makes of an array or, of its shape alone, the shape of that."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(rule, leaf)
    return rule(jnp.asarray(leaf))
