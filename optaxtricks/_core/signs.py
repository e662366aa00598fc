"""The relaxed sign of Lion and Tiger: a power of the size, and a dead zone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import checks
from .schedules import at_step


@dataclasses.dataclass(frozen=True)
class SignRule:
    """The arguments `exponent` and `dead_zone`, checked."""

    exponent: optax.ScalarOrSchedule
    dead_zone: Any

    def __post_init__(self) -> None:
        checks.exponent(exponent=self.exponent)
        checks.non_negative(dead_zone=self.dead_zone)

    @property
    def scheduled(self) -> bool:
        """Whether the exponent changes with the step, so that the state counts."""
        return callable(self.exponent)

    def at(self, step: Any) -> tuple[Any, Any]:
        """Exponent and dead zone at a step; None for what does nothing."""
        power = at_step(step, exponent=self.exponent)
        return _unless_zero(power), _unless_zero(self.dead_zone)


def relaxed_sign(x: jax.Array, how: tuple[Any, Any]) -> jax.Array:
    r"""The sign of x times :math:`|x|^e` where :math:`|x| > \tau`, and 0 elsewhere.

    NaN stays NaN.
    """
    power, dead_zone = how
    u = jnp.sign(x)
    if power is not None:
        u = u * jnp.abs(x) ** jnp.asarray(power, x.dtype)
    if dead_zone is None:
        return u
    inside = jnp.abs(x) <= jnp.asarray(dead_zone, x.dtype)
    return jnp.where(inside, jnp.zeros((), x.dtype), u)


def _unless_zero(value: Any) -> Any:
    """None for a zero known at build; a traced value may be anything."""
    return None if isinstance(value, int | float) and value == 0 else value
