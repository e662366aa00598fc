"""Diagonal Fisher information of parameters, from a stream of examples."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._core import checks
from .._core.batches import batches_of, checked_batches, with_progress
from .._core.example_gradients import (
    Leaves,
    clipped,
    each,
    filled,
    fold,
    fold_lanes,
    gradient_sum,
    halves,
    lanes_of,
    leading_size,
    plus,
    powers,
)
from .._core.likelihood import (
    LABELS,
    Labels,
    checked_output,
    expected_scores,
    label_objective,
    label_scores,
    sampling_key,
)
from .._core.selectors import Selector, matches

Per = Literal["example", "batch"]

# Mean |log of the sum of probabilities| above which they are none; bfloat16 stays
# far below it and raw logits far above.
_UNNORMALISED = 0.1


def fisher_information(
    log_likelihood: Callable[[Any, Any], Any],
    params: Any,
    batches: Any,
    *,
    labels: Labels = "observed",
    per: Per = "example",
    power: Literal[1, 2] = 2,
    clip_norm: float | None = None,
    where: Selector | None = None,
    microbatch_size: int | None = None,
    key: Any = None,
    progress: bool = False,
) -> Any:
    r"""Scores every parameter entry by its Fisher information (Child-Tuning-D, FISH).

    With :math:`g_n = \nabla_\theta \log p(y_n \mid x_n, \theta)` for example
    :math:`n` of :math:`N`, the score of entry :math:`i` is, for ``per="example"``,

    .. math::
        F_i = \frac1N \sum_n g_{n,i}^2
        \qquad \text{or} \qquad
        F_i = \frac1N \sum_n \sum_c p(c \mid x_n) \, g_{n,c,i}^2,

    the second with ``labels="expected"``, where :math:`g_{n,c}` is the gradient for
    class :math:`c` and its probability is not differentiated. For ``per="batch"`` it
    is the mean over batches of :math:`\mathrm{clip}(\bar g)_i^2`, where
    :math:`\bar g` is the mean of :math:`g_n` over a batch and each leaf is clipped
    on its own to the norm ``clip_norm``. ``power=1`` takes :math:`|g|` for
    :math:`g^2`.

    ``per="batch"`` is what the Child-Tuning code computes. Opposite gradients cancel
    in it, so it may rank entries the other way round than ``per="example"``. That
    code also leaves dropout on; whether this function does is up to
    ``log_likelihood``, to which nothing random is passed. The FISH code sums over
    examples where this takes the mean, which changes no ranking.

    Guarantees:
      - ``batches`` is read once, one batch at a time, without waiting for the
        device; memory does not grow with their number.
      - ``per="example"`` depends neither on how examples are grouped into batches
        nor on ``microbatch_size``, up to rounding; sampled labels are the same, being
        a function of ``key`` and the example's position in the stream.
      - Only leaves that ``where`` selects are differentiated.
      - Compiled once for each shape of batch (a ragged last one is a second), and
        afresh in each call, so what ``log_likelihood`` closes over is current. Under
        an outer ``jit`` it is part of that program, which you may keep.
      - Gradients have the dtype of their parameter and are squared and summed in
        float32.

    Args:
      log_likelihood: ``(params, example) -> log p``; ``example`` is an entry of a
        batch, without the leading axis. It returns a scalar, the log-likelihood of
        the example's own label, if ``labels="observed"``, else the log-probabilities
        of all classes, of shape ``(num_classes,)``.
      params: a pytree of floating-point leaves.
      batches: one batch or a stream of them. A list is a stream, and so is a
        generator, an iterator or a data loader. An array, and any other container
        that JAX flattens (dict, tuple, NamedTuple, dataclass), is one batch, whose
        leaves have a leading example axis. A tuple of like containers could be
        either and is an error; ``[batch]`` is one batch without any doubt.
      labels: ``"observed"``, the empirical Fisher; ``"sampled"``, one label drawn
        from the model for each example; ``"expected"``, the exact expectation over
        the model's labels, with one backward pass for each class.
      per: ``"example"`` or ``"batch"``. The mean counts every example, or every
        batch, once, a smaller last batch too.
      power: 2 or 1.
      clip_norm: for ``per="batch"``; the factor is that of torch,
        :math:`\min(1, \text{clip\_norm} / (\lVert g \rVert + 10^{-6}))`.
      where: Selector of the leaves to score; by default all. Leave out a large
        embedding table where its scores are not needed: each example costs a pass
        over the table.
      microbatch_size: how many examples are differentiated at once. By default one
        (a whole batch for ``per="batch"``), the fastest on CPU; others need memory
        for so many gradients. For a batch sharded over devices give the number of
        devices: one example at a time would be computed by all of them alike. Each
        device then keeps sums of its own, and they are added up once a batch. (Over
        Explicit mesh axes a batch is always gathered first; under an outer ``jit``,
        and with ``per="batch"``, sums are added up once a microbatch.)
      key: for ``labels="sampled"`` alone: int, typed PRNG key, or legacy uint32 key.
      progress: show a progress bar (of batches handed to the device); needs rich.

    Returns:
      A tree like ``params`` of float32 arrays, with ``None`` in place of leaves that
      ``where`` leaves out, as in :func:`split`: zeros would take their memory.

    Raises:
      ValueError: an option is out of range or does not go with another; ``params``
        without leaves; ``where`` matches no leaf; an empty or ill-shaped batch;
        ``log_likelihood`` returns another shape, or numbers that are no
        log-probabilities; a score is not finite (the message names the leaf). Under
        an outer ``jit`` the last two checks are left out.
      TypeError: an argument of the wrong kind; an integer or complex leaf, or a leaf
        that is no array.
      ImportError: ``progress=True`` without rich.

    Examples:
      Four examples with gradients (1, 2), (-1, 2), (3, 0) and (-3, 0); batch means
      of two cancel in the first entry, and the ranking flips:

      >>> import jax.numpy as jnp
      >>> import optaxtricks as ot
      >>> log_p = lambda params, x: params @ x
      >>> examples = jnp.array([[1.0, 2], [-1, 2], [3, 0], [-3, 0]])
      >>> ot.fisher_information(log_p, jnp.zeros(2), examples).tolist()
      [5.0, 2.0]
      >>> pairs = [examples[:2], examples[2:]]
      >>> ot.fisher_information(log_p, jnp.zeros(2), pairs, per="batch").tolist()
      [0.0, 2.0]

    References:
      Xu et al., 2021, `Raise a Child in Large Language Model
      <https://arxiv.org/abs/2109.05687>`_ (code: alibaba/AliceMind,
      ``ChildTuningD.py``). Sung et al., 2021, `Training Neural Networks with Fixed
      Sparse Masks <https://arxiv.org/abs/2111.09839>`_ (code: varunnair18/FISH).
    """
    _check_options(log_likelihood, labels, per, power, clip_norm, microbatch_size)
    checks.flag(progress=progress)
    leaves, layout = jax.tree.flatten(params)
    if not leaves:
        raise ValueError("params has no leaves to score.")
    everything = [True] * len(leaves)
    eligible = everything if where is None else matches(params, where, name="where")
    chosen, rest = halves(leaves, eligible)
    fill = lambda chosen, rest: filled(layout, eligible, chosen, rest)
    with_holes = lambda chosen: fill(chosen, [None] * len(rest))
    checks.inexact_leaves(
        with_holes(chosen), by="fisher_information", allow_complex=False, remedy="where"
    )
    checks.array_leaves(
        fill([None] * len(chosen), rest), by="fisher_information", remedy="a closure"
    )
    plan = _Plan(
        log_p=lambda chosen, rest, example: checked_output(
            log_likelihood(fill(chosen, rest), example), labels
        ),
        labels=labels,
        per=per,
        power=power,
        clip_norm=clip_norm,
        microbatch_size=microbatch_size,
    )
    stream = batches_of(batches)
    if progress:
        stream = with_progress(stream, "Fisher information")
    sums, count = _sums(plan, chosen, rest, sampling_key(key, labels), stream)
    *scores, excess = [x / count for x in sums]
    _check_scores(with_holes(scores), excess)
    return with_holes(scores)


class _Plan(NamedTuple):
    """What stays the same over all batches of a call."""

    log_p: Callable[[Leaves, Leaves, Any], jax.Array]
    labels: Labels
    per: Per
    power: int
    clip_norm: float | None
    microbatch_size: int | None


def _sums(
    plan: _Plan, chosen: Leaves, rest: Leaves, key: Any, stream: Iterable[Any]
) -> tuple[Leaves, int]:
    """Sums of scores and, last, of the excess; and how many terms they have."""
    # The running sums are donated and nothing is read back: the host only hands
    # over the next batch.
    add = jax.jit(
        functools.partial(_add_batch, plan), donate_argnums=0, static_argnums=6
    )
    sums = [jnp.zeros_like(x, jnp.float32) for x in chosen]
    sums.append(jnp.zeros((), jnp.float32))
    examples = number = 0
    for size, batch in checked_batches(stream):
        lanes = lanes_of(batch, min(plan.microbatch_size or 1, size))
        sums = add(sums, chosen, rest, key, batch, np.uint32(examples), lanes)
        examples, number = examples + size, number + 1
    return sums, examples if plan.per == "example" else number


def _add_batch(
    plan: _Plan,
    sums: Leaves,
    chosen: Leaves,
    rest: Leaves,
    key: Any,
    batch: Any,
    first: jax.Array,
    lanes: Any,
) -> Leaves:
    size = leading_size(batch)
    numbered = batch, first + jnp.arange(size, dtype=jnp.uint32)
    log_p = lambda chosen, example: plan.log_p(chosen, rest, example)
    objective = functools.partial(label_objective, log_p, key, plan.labels)
    if plan.per == "example":
        rule, on = label_scores, objective
        if plan.labels == "expected":
            rule, on = expected_scores, log_p
        one = functools.partial(rule, on, plan.power, chosen)
        width = min(plan.microbatch_size or 1, size)
        if lanes is not None:
            return fold_lanes(one, sums, numbered, width, lanes)
        return fold(each(one), sums, numbered, width)
    part = gradient_sum(objective, chosen)
    zeros = [jnp.zeros_like(x) for x in sums]
    total = fold(part, zeros, numbered, min(plan.microbatch_size or size, size))
    *means, excess = [x / size for x in total]
    grads = [clipped(x, plan.clip_norm) for x in means]
    return plus(sums, [*powers(grads, plan.power), excess])


def _check_options(
    log_likelihood: Any,
    labels: str,
    per: str,
    power: int,
    clip_norm: float | None,
    microbatch_size: int | None,
) -> None:
    checks.function(log_likelihood=log_likelihood)
    checks.chosen(LABELS, labels=labels)
    checks.chosen(("example", "batch"), per=per)
    checks.chosen((1, 2), power=power)
    if per == "batch" and labels == "expected":
        raise ValueError(
            "labels='expected' needs per='example': a batch's mean gradient has no "
            "expectation over labels."
        )
    if clip_norm is not None:
        checks.positive(clip_norm=clip_norm)
        if per == "example":
            raise ValueError("clip_norm needs per='batch'; it clips a batch's mean.")
    if microbatch_size is not None:
        checks.positive_int(microbatch_size=microbatch_size)


def _check_scores(scores: Any, excess: jax.Array) -> None:
    """Reads the results back once; traced ones pass unexamined."""
    checks.finite_leaves(scores, what="the Fisher information")
    if not isinstance(excess, jax.core.Tracer) and excess > _UNNORMALISED:
        raise ValueError(
            "log_likelihood must return log-probabilities, but the log of their sum "
            f"is {float(excess):.3g} off 0 on average; apply jax.nn.log_softmax."
        )
