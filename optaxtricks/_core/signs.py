"""The relaxed sign of Lion and Tiger, and the count of steps that it may need."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import checks


@dataclasses.dataclass(frozen=True)
class SignRule:
    r"""The sign of x times :math:`|x|^e` where :math:`|x| > \tau`, and 0 elsewhere."""

    exponent: optax.ScalarOrSchedule
    dead_zone: Any

    def __post_init__(self) -> None:
        checks.unit_interval(exponent=self.exponent)
        checks.non_negative(dead_zone=self.dead_zone)

    @property
    def scheduled(self) -> bool:
        """Whether the exponent changes with the step, so that the state counts."""
        return callable(self.exponent)

    @property
    def keeps_scale(self) -> bool:
        """Whether a positive factor of `x` would change the result."""
        return not (_is_number(self.exponent, 0) and _is_number(self.dead_zone, 0))

    def at(self, step: Any) -> Any:
        """The exponent at a step; `step` is read by a schedule only."""
        if not callable(self.exponent):
            return self.exponent
        value = self.exponent(step)
        checks.scalar(exponent=value)
        return value

    def apply(self, x: jax.Array, exponent: Any) -> jax.Array:
        """The rule on an array of at least float32; NaN stays NaN."""
        if _is_number(exponent, 0):
            u = jnp.sign(x)
        elif _is_number(exponent, 1):
            u = x
        else:
            u = jnp.sign(x) * jnp.abs(x) ** jnp.asarray(exponent, x.dtype)
        if _is_number(self.dead_zone, 0):
            return u
        inside = jnp.abs(x) <= jnp.asarray(self.dead_zone, x.dtype)
        return jnp.where(inside, jnp.zeros((), x.dtype), u)


def _is_number(value: Any, number: int) -> bool:
    """Whether a value known at build is this number; a traced one never is."""
    return isinstance(value, int | float) and value == number
