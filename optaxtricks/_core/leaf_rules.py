"""A rule for one leaf of the updates and of the momentum, over whole trees."""

from collections.abc import Callable
from typing import Any

import jax

from . import checks, update_checks

Rule = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def over_leaves(rule: Rule, updates: Any, mu: Any, *, by: str) -> tuple[Any, Any]:
    """The new updates and momentum, from a rule for a leaf of each."""
    leaves, layout = jax.tree.flatten(updates)
    # `init` may have seen Flax Variables where `update` sees arrays.
    momenta, kept_layout = jax.tree.flatten(mu)
    checks.same_count(leaves, momenta, by=by)
    checks.inexact_leaves(updates, by=by, allow_complex=False)
    update_checks.same_shapes(updates, mu, by=by, name="the state")
    pairs = [rule(u, m) for u, m in zip(leaves, momenta, strict=True)]
    return (
        jax.tree.unflatten(layout, [u for u, _ in pairs]),
        jax.tree.unflatten(kept_layout, [m for _, m in pairs]),
    )
