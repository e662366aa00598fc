"""How far the representations of a siamese network are from collapse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.shardings import replicated

# Of unit rows, a spread of no more than this is rounding.
_ROUNDING = 16 * float(np.finfo(np.float32).eps)


def collapse_metrics(z: Any) -> dict[str, jax.Array]:
    r"""Measures spread and dimension of a batch of representations.

    With unit rows :math:`\hat z_i = z_i / \lVert z_i \rVert`, all that the cosine
    losses of SimSiam and BYOL see, and the eigenvalues :math:`\lambda_j` of the
    covariance of :math:`\hat z`,

    .. math::
        \mathrm{std\_ratio} = \sqrt d\, \operatorname*{mean}_c
        \operatorname*{std}_i \hat z_{ic}, \qquad
        \mathrm{effective\_rank} = \frac{1}{\min(d, n - 1)}
        \exp\Bigl(-\sum_j p_j \log p_j\Bigr), \quad
        p_j = \frac{\lambda_j}{\sum_k \lambda_k}.

    Both are 0 where all rows point the same way and 1 for directions that are uniform
    on the sphere, up to sampling. The first says how far the batch is spread, and is
    blind to a spread over few dimensions; the second is the fraction of the available
    dimensions in use: rows on one line through the mean have
    :math:`1 / \min(d, n - 1)`.

    Guarantees:
      - Both lie in ``[0, 1]``, up to rounding, and are exactly 0 where the rows differ
        by no more than float32 rounding after normalisation.
      - A positive factor to any row changes nothing; a row of zeros counts as the
        point 0. NaN in, NaN out.
      - A batch sharded over devices is measured as one, on both kinds of mesh axes.

    Args:
      z: floats of shape ``(n, d)``, a representation a row, with ``n >= 2``; computed
        in float32, at the cost of the eigenvalues of a ``min(n, d)``-square matrix.

    Returns:
      float32 scalars by name, ``"std_ratio"`` and ``"effective_rank"``.

    Raises:
      ValueError: another rank, fewer than 2 rows, or no column.
      TypeError: numbers that are not real floats.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> square = jnp.array([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0], [0.0, -1.0]])
      >>> {name: round(float(x), 4) for name, x in ot.collapse_metrics(square).items()}
      {'effective_rank': 1.0, 'std_ratio': 1.0}
      >>> collapsed = jnp.ones((8, 2)) * jnp.arange(1.0, 9.0)[:, None]
      >>> {name: float(x) for name, x in ot.collapse_metrics(collapsed).items()}
      {'effective_rank': 0.0, 'std_ratio': 0.0}

    References:
      Chen and He, 2021, `Exploring Simple Siamese Representation Learning
      <https://arxiv.org/abs/2011.10566>`_, section 4.1, for the spread. Roy and
      Vetterli, 2007, "The effective rank: a measure of effective dimensionality",
      which takes singular values of the data where this takes eigenvalues.
    """
    z = checks.real_array(z=z)
    if z.ndim != 2 or z.shape[0] < 2 or z.shape[1] < 1:
        raise ValueError(
            "z must have shape (n, d) with at least 2 rows and 1 column, "
            f"got {z.shape}."
        )
    # On a mesh of Explicit axes every device gets the batch: eigenvalues need it.
    return _measured(replicated(z))


@jax.jit
def _measured(z: jax.Array) -> dict[str, jax.Array]:
    n, d = z.shape
    unit = _unit_rows(z.astype(jnp.float32))
    # Relative to a row, so that sums over a collapsed batch are sums of small numbers.
    centred = unit - unit[:1]
    centred = centred - centred.mean(axis=0, keepdims=True)
    deviation = jnp.sqrt(jnp.square(centred).mean(axis=0))
    tall = centred.T if n > d else centred
    gram = jnp.matmul(tall, tall.T, precision=jax.lax.Precision.HIGHEST)
    values = jnp.maximum(jnp.linalg.eigvalsh(gram), 0)
    total = values.sum()
    shares = values / jnp.where(total == 0, jnp.ones_like(total), total)
    rank = jnp.exp(jax.scipy.special.entr(shares).sum()) / min(d, n - 1)
    collapsed = jnp.sqrt(jnp.square(deviation).sum()) <= _ROUNDING
    zero = jnp.zeros((), jnp.float32)
    return {
        "effective_rank": jnp.where(collapsed, zero, rank),
        "std_ratio": jnp.where(collapsed, zero, deviation.mean() * float(np.sqrt(d))),
    }


def _unit_rows(z: jax.Array) -> jax.Array:
    """Rows of length 1; a row of zeros, or of subnormal numbers, stays near 0."""
    # Twice, as the squares of very large or small numbers are not finite or zero.
    for size in (_largest, _length):
        by = size(z)
        z = z / jnp.where(by < jnp.finfo(z.dtype).tiny, jnp.ones_like(by), by)
    return z


def _largest(z: jax.Array) -> jax.Array:
    return jnp.abs(z).max(axis=1, keepdims=True)


def _length(z: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(z).sum(axis=1, keepdims=True))
