"""Lion and Tiger, complete, and either of them with Adam on the embeddings."""

from functools import partial
from typing import Any

import jax
import optax

from .._core import checks, update_checks
from .._core.leaf_kinds import kinds
from .._core.nonfinite import shrinking, still_where_nonfinite
from .._core.paths import flatten
from .._core.rates import add_decay, scale_by_number, scale_by_rate
from .._core.selectors import Selector, matches
from .._core.wide import in_float32
from ..transforms import (
    at_window_end,
    scale_by_lion,
    scale_by_param_rms,
    scale_by_tiger,
)


def lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.99,
    *,
    mu_dtype: Any = None,
    weight_decay: Any = 1e-3,
    mask: Any = None,
    exponent: optax.ScalarOrSchedule = 0.0,
    dead_zone: Any = 0.0,
    cautious: bool = False,
    skip_nonfinite: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Lion: a step of one size for every entry, in the direction of a sign.

    .. math::
        \theta \leftarrow \theta - \eta (\operatorname{sign}(c) + \lambda \theta)

    with :math:`c` between momentum and gradient. The chain is, in order:
    :func:`scale_by_lion` and, in float32 or wider, ``optax.add_decayed_weights`` and
    ``optax.scale_by_learning_rate``. Signature, defaults and trajectory are those of
    ``optax.lion``; the compiled step moves about half the bytes. Take a rate 3 to 10
    times smaller than AdamW's and a decay as many times larger.

    Rows of an embedding table that are hardly ever looked up drift to
    ``1 / weight_decay`` in size; :func:`lazy_rows` and :func:`mixed_sign` are cures.

    Args:
      learning_rate: a number or a schedule of the step.
      b1: weight of the momentum in the direction, in ``(0, 1)``.
      b2: decay of the momentum, in ``(0, 1)``.
      mu_dtype: dtype of the momentum; ``None`` takes each parameter's own. List it in
        ``static_args`` under ``optax.inject_hyperparams``, and for narrow parameters
        give that ``hyperparam_dtype=jnp.float32``, or decays become 1.
      weight_decay: :math:`\lambda`, decoupled, multiplied by the learning rate.
      mask: which leaves decay, as in ``optax.add_decayed_weights``; static likewise.
      exponent: see :func:`scale_by_lion`.
      dead_zone: see :func:`scale_by_lion`.
      cautious: see :func:`scale_by_lion`.
      skip_nonfinite: whether a leaf whose gradient holds NaN or infinity stays as it
        is, decay and momentum included; see :func:`scale_by_lion`.

    Returns:
      A transformation. Its ``update`` needs ``params``.

    Raises:
      ValueError, TypeError: as :func:`scale_by_lion`; also a rate or decay that is
        negative or no number, and a ``mask`` that is none.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = jnp.array([4.0, -4.0])
      >>> tx = ot.lion(0.5, weight_decay=0.25)
      >>> updates, _ = tx.update(jnp.array([0.1, 9.0]), tx.init(params), params)
      >>> optax.apply_updates(params, updates).tolist()
      [3.0, -4.0]

    References:
      Chen et al., 2023, `Symbolic Discovery of Optimization Algorithms
      <https://arxiv.org/abs/2302.06675>`_ (code: google/automl, ``lion``).
    """
    checks.rate(learning_rate=learning_rate, weight_decay=weight_decay)
    checks.leaf_mask(mask=mask)
    direction = scale_by_lion(
        b1,
        b2,
        mu_dtype=mu_dtype,
        exponent=exponent,
        dead_zone=dead_zone,
        cautious=cautious,
        skip_nonfinite=skip_nonfinite,
    )
    step = add_decay(weight_decay, mask), scale_by_rate(learning_rate)
    complete = update_checks.with_params(optax.chain(direction, *step), by="lion")
    return still_where_nonfinite(complete) if skip_nonfinite else complete


def tiger(
    learning_rate: optax.ScalarOrSchedule,
    *,
    beta: Any = 0.965,
    weight_decay: Any = 0.01,
    accumulate_steps: int | None = None,
    relative: bool = True,
    rms_floor: Any = 1e-3,
    embeddings: Selector | None = None,
    vectors: Selector | None = None,
    scalar_factor: Any = 0.5,
    shrink: Any = 0.99,
    shrink_to_one: Selector | None = None,
    mu_dtype: Any = None,
    exponent: optax.ScalarOrSchedule = 0.0,
    dead_zone: Any = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Tiger: sign momentum with steps relative to each matrix's size.

    Matrices and vectors move by

    .. math::
        \theta \leftarrow \theta - \eta \operatorname{RMS}(\theta)
        (\operatorname{sign}(m) + \lambda \theta), \qquad
        \theta \leftarrow \theta - \tfrac12 \eta \operatorname{sign}(m).

    Vectors are the leaves with fewer than two axes, and those whose path ends in the
    step ``bias``, ``scale``, ``beta``, ``gamma`` or ``offset``: attention in Flax has
    biases of two axes. The published code goes by parts of names alone: ``bias``,
    ``beta`` or ``gamma`` makes a vector, and one with ``gamma`` shrinks toward 1; else
    ``embeddings`` makes a table, scaled by row; all others are matrices.

    The chain is, in order: :func:`scale_by_tiger`; and, :func:`at_window_end` and in
    float32 or wider, for matrices ``optax.add_decayed_weights`` and
    :func:`scale_by_param_rms`, for vectors ``optax.scale``, then the learning rate; all
    of it inside :func:`shrink_nonfinite`. Memory: one array a parameter.

    Guarantees:
      - With ``accumulate_steps=k``, updates are exactly zero but at every k-th call,
        and equal, up to rounding, those of ``k=1`` on the means of k gradients.
        Schedules count windows; the root mean square is that of the last call.
      - A leaf with a non-finite gradient keeps its momentum and shrinks by
        ``shrink``, at once, inside a window too.

    Args:
      learning_rate: a number, or a schedule of the window's number from 0. The
        published code advises a peak of 0.001 to 0.002.
      beta: decay of the momentum, in ``(0, 1)``.
      weight_decay: :math:`\lambda`, for matrices only, and scaled like the step.
      accumulate_steps: calls to a window, at least 1; ``None`` is 1. List it in
        ``static_args`` under ``optax.inject_hyperparams``.
      relative: whether matrices take steps relative to their root mean square;
        without it :math:`\operatorname{RMS}(\theta)` above is 1.
      rms_floor: the least root mean square to reckon with, so that matrices
        initialised to zero move; 0 gives the published code, where they never do.
      embeddings: a selector of matrices to scale row by row, as the published code
        does with embeddings; vectors among them stay vectors. It lets rare rows drift
        to :math:`\pm 1/\lambda` much faster: see :func:`lazy_rows`.
      vectors: a selector of the vectors, in place of the names above. Leaves with
        fewer than two axes are vectors whatever it says.
      scalar_factor: what vectors' rate is multiplied by.
      shrink: in ``(0, 1)``; ``None`` lets non-finite values through.
      shrink_to_one: a selector of leaves that shrink toward 1, such as the scales of
        normalisation layers; the others shrink toward 0.
      mu_dtype: dtype of the momentum; ``None`` takes each parameter's own. List it in
        ``static_args`` under ``optax.inject_hyperparams``, and for narrow parameters
        give that ``hyperparam_dtype=jnp.float32``, or decays become 1.
      exponent: see :func:`scale_by_tiger`.
      dead_zone: see :func:`scale_by_tiger`.

    Returns:
      A transformation. Its ``update`` needs ``params``.

    Raises:
      ValueError: an argument out of range; ``shrink_to_one`` without ``shrink``, or
        ``embeddings`` without ``relative``; a selector that matches no leaf, or
        ``embeddings`` that choose no matrix.
      TypeError: an argument of the wrong kind; from ``init``, an integer or complex
        leaf.

    Examples:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optaxtricks as ot
      >>> params = {"bias": jnp.zeros(2), "kernel": jnp.full((2, 2), 4.0)}
      >>> tx = ot.tiger(0.5, weight_decay=0.0)
      >>> grads = {"bias": jnp.ones(2), "kernel": -jnp.ones((2, 2))}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> updates["bias"].tolist(), updates["kernel"].tolist()
      ([-0.25, -0.25], [[2.0, 2.0], [2.0, 2.0]])

    References:
      Su, 2023, "Tiger: a tight-fisted optimizer", kexue.fm archive 9512 (code:
      bojone/tiger, which shrinks on NaN only and takes no floor).
    """
    checks.rate(learning_rate=learning_rate, weight_decay=weight_decay)
    checks.non_negative(scalar_factor=scalar_factor, rms_floor=rms_floor)
    checks.flag(relative=relative)
    if embeddings is not None and not relative:
        raise ValueError("embeddings needs relative=True.")
    if shrink is None and shrink_to_one is not None:
        raise ValueError("shrink_to_one needs shrink.")
    direction = scale_by_tiger(
        beta,
        accumulate_steps=accumulate_steps,
        mu_dtype=mu_dtype,
        exponent=exponent,
        dead_zone=dead_zone,
        skip_nonfinite=shrink is not None,
    )
    size = [scale_by_param_rms(floor=rms_floor, rows=embeddings)] if relative else []
    parts: dict[Any, Any] = {
        "matrix": optax.chain(add_decay(weight_decay), *size),
        "vector": scale_by_number(scalar_factor),
    }
    labels = partial(kinds, vectors=vectors, embeddings=embeddings)
    step = optax.chain(optax.partition(parts, labels), scale_by_rate(learning_rate))
    if accumulate_steps is not None and accumulate_steps > 1:
        step = at_window_end(step, accumulate_steps=accumulate_steps)
    complete = optax.chain(direction, step)
    if shrink is None:
        return update_checks.with_params(complete, by="tiger")
    to_one = {"shrink_to_one": shrink_to_one}
    return shrinking(complete, shrink, to_one, by="tiger", skips=True)


_METHODS = {"lion": lion, "tiger": tiger}


def mixed_sign(
    learning_rate: optax.ScalarOrSchedule,
    *,
    embeddings: Selector,
    sign: str = "lion",
    adam_learning_rate: optax.ScalarOrSchedule | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Lion or Tiger with Adam on the embeddings.

    A sign method moves a row that has not been looked up for long as far as any
    other, until it stands at one over the weight decay. Adam lets it come to rest.

    The chain is ``optax.partition`` of ``optax.adam`` on ``embeddings`` and
    :func:`lion` or :func:`tiger` on the rest. If Tiger accumulates, Adam does so over
    the same windows, in ``optax.MultiSteps``. Adam's moments are float32 or wider: in
    float16 its ``eps`` is 0, and a row without a gradient comes to 0 / 0. A gradient
    that is not finite spoils Adam's leaves: see ``optax.apply_if_finite``.

    Args:
      learning_rate: of the sign method; a number or a schedule.
      embeddings: a selector (see :func:`select`) of the leaves for Adam.
      sign: ``"lion"`` or ``"tiger"``.
      adam_learning_rate: of Adam; ``None`` takes ``learning_rate``. Adam bears a
        rate 3 to 10 times Lion's.
      options: further arguments of the sign method.

    Returns:
      A transformation. Its ``update`` needs ``params``.

    Raises:
      ValueError: ``sign`` is neither; a rate that is negative or not finite;
        ``embeddings`` matches no leaf; as the sign method.
      TypeError: as the sign method.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> params = {"emb": jnp.ones(1000), "w": jnp.ones(50)}
      >>> tx = ot.mixed_sign(1e-4, embeddings="emb", adam_learning_rate=1e-3)
      >>> moments = [x.size for x in jax.tree.leaves(tx.init(params)) if x.size > 1]
      >>> sorted(moments)  # two for Adam, one for Lion
      [50, 1000, 1000]

    References:
      Su, 2023, "Embeddings and the sign optimizers", kexue.fm archive 9736, after
      advice of Lion's authors.
    """
    checks.chosen(_METHODS, sign=sign)
    checks.rate(learning_rate=learning_rate)
    if adam_learning_rate is not None:
        checks.rate(adam_learning_rate=adam_learning_rate)
    # optax.inject_hyperparams hands them over as one argument of this name.
    options = {**options.pop("options", {}), **options}
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam = optax.chain(optax.scale_by_adam(), scale_by_rate(rate))
    method = _METHODS[sign](learning_rate, **options)
    if (window := options.get("accumulate_steps") or 1) > 1:
        adam = optax.MultiSteps(adam, window).gradient_transformation()

    def labels(tree: Any) -> Any:
        chosen = matches(tree, embeddings, name="embeddings")
        names = ["adam" if is_table else "sign" for is_table in chosen]
        return jax.tree.unflatten(flatten(tree)[1], names)

    adam = update_checks.beside_moments(in_float32(adam), by="mixed_sign")
    both = optax.partition({"adam": adam, "sign": method}, labels)
    return update_checks.with_params(both, by="mixed_sign", kind=optax.PartitionState)
