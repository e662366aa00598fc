"""Standard normal numbers from random words."""

import jax
import jax.numpy as jnp
import numpy as np

_LOW = np.uint32(2**31 - 1)
# z / x below, as a rational function of w in [0, 21.5], constant terms first: fitted by
# reweighted least squares in float64, to 1e-8. Positive terms alone lose no digits.
_ABOVE = (
    *(1.253314125, 0.4474259255, 0.0909918392, 0.01252023653),
    *(0.001137569611, 5.927057768e-05, 1.908817652e-07),
)
_BELOW = (
    *(1.0, 0.09519457159, 0.03464834604, 0.002310888241),
    *(0.0002482971698, 3.734058472e-06),
)


def normals(words: jax.Array) -> jax.Array:
    r"""A standard normal number, in float32, for each uint32 word.

    The top bit is the sign, so a word with that bit flipped gives the negative,
    exactly. The 31 low bits :math:`m` are a cell of one tail, from its end to the
    middle:

    .. math::
        z = -\Phi^{-1}(q), \qquad q = (m + \tfrac12) \, 2^{-32},

    which runs from 2.9e-10 to 6.338, neither 0 nor infinite, and is computed to 5e-7 of
    itself for every word. The law itself goes beyond 6.338 once in 4.3 billion draws.
    """
    half = np.float32(0.5)
    low = words & _LOW
    # Each from its own end: their rounding is relative, and neither reaches 0.
    tail = (low.astype(jnp.float32) + half) * np.float32(2**-32)
    x = ((low ^ _LOW).astype(jnp.float32) + half) * np.float32(2**-31)  # 1 - 2 q
    w = -jnp.log(4 * tail * (1 - tail))
    # Signed before the division: XLA computes that anew for each of its uses, or else
    # stores it, and a sign would be two.
    signed = jnp.where(words > _LOW, -x, x)
    return signed * _polynomial(_ABOVE, w) / _polynomial(_BELOW, w)


def _polynomial(terms: tuple[float, ...], w: jax.Array) -> jax.Array:
    """By Horner's rule, constant term first."""
    *rest, total = terms
    for term in reversed(rest):
        total = total * w + np.float32(term)
    return jnp.asarray(total)
