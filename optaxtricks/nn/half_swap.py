"""The two halves of a feature swapped, for embeddings tied to the output layer."""

from typing import Any

import jax
import jax.numpy as jnp

from .._core import checks


def half_swap(x: Any) -> jax.Array:
    r"""Swaps the halves of the last axis.

    .. math:: S(x) = (x_{d/2+1}, \dots, x_d, x_1, \dots, x_{d/2})

    It belongs between the last normalisation of a language model and a multiplication
    with the transposed embedding table, ``half_swap(h) @ table.T``. Without it a tied
    table starts at a bad place: the feature of a token is still close to its own row
    :math:`w`, normalised, so that :math:`w \cdot w` outweighs the other logits and the
    loss starts near :math:`\log(e^{d\sigma} + n - 1)` for n rows of d entries of
    deviation :math:`\sigma`; with d = 768, :math:`\sigma = 1/\sqrt d` and n = 21128
    that is 27.7. As :math:`w \cdot S(w)` has mean 0 (and variance
    :math:`2 d \sigma^4`), the swap makes it :math:`\log n`, here 10.

    A tied table also gets a gradient in every row, so that none is left to drift
    under a sign method.

    Guarantees:
      - A permutation: linear, orthogonal, its own inverse and its own transpose.
      - No communication unless the last axis itself is sharded.

    Args:
      x: an array of shape ``(..., d)``, d even, of any dtype.

    Returns:
      An array of the same shape and dtype.

    Raises:
      ValueError: ``x`` is a scalar or d is odd.
      TypeError: ``x`` is no array.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> ot.nn.half_swap(jnp.array([1, 2, 3, 4])).tolist()
      [3, 4, 1, 2]

    References:
      Su, 2023, kexue.fm archives 9698 (the initial loss) and 9736 (sign methods).
    """
    x = checks.array(x=x)
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError(
            f"half_swap needs a last axis of even size, got shape {x.shape}."
        )
    return jnp.roll(x, x.shape[-1] // 2, axis=-1)
