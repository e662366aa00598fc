"""Diagonal Fisher information of parameters, from a stream of examples."""

from collections.abc import Callable
from typing import Any, Literal

import jax

from .._core import checks
from .._core.batches import batches_of, with_progress
from .._core.example_gradients import filled, halves
from .._core.layers import Stacked, layer_axes
from .._core.likelihood import LABELS, Labels, checked_output, sampling_key
from .._core.score_sums import Per, Plan, score_sums
from .._core.selectors import Selector, matches

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
    stacked: Stacked | None = None,
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
    :math:`\bar g` is the mean of :math:`g_n` over a batch and each tensor (a leaf, or
    a layer of a stack) is clipped on its own to the norm ``clip_norm``. ``power=1``
    takes :math:`|g|` for :math:`g^2`.

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
      - A ``stacked`` leaf has the scores that its layers would have as leaves.
      - Compiled once for each shape of batch (a ragged last one is a second), and
        afresh in each call, so what ``log_likelihood`` closes over is current. Under
        an outer ``jit`` it is part of that program, which you may keep.
      - Gradients have the dtype of their parameter and are squared and summed in
        float32, term by term: entries below 1e-19 or above 1e19 leave its range when
        squared, and past :math:`2^{24}` terms a typical one is lost in the sum.

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
      stacked: for ``clip_norm``, which of the scored leaves are stacks of layers, as
        ``nn.scan`` makes them: a selector, for layers on axis 0, or pattern -> axis.
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
        without leaves; ``where`` or ``stacked`` matches no leaf, or a stack has not
        the axis named; an empty or ill-shaped batch; ``log_likelihood`` returns
        another shape, or numbers that are no log-probabilities; a score is not finite
        (the message names the leaf). Under an outer ``jit`` the last two checks are
        left out.
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
    if stacked is not None and clip_norm is None:
        raise ValueError("stacked needs clip_norm: nothing else here goes by layers.")
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
    plan = Plan(
        log_p=lambda chosen, rest, example: checked_output(
            log_likelihood(fill(chosen, rest), example), labels
        ),
        labels=labels,
        per=per,
        power=power,
        clip_norm=clip_norm,
        layers=layer_axes(with_holes(chosen), stacked),
        microbatch_size=microbatch_size,
    )
    stream = batches_of(batches)
    if progress:
        stream = with_progress(stream, "Fisher information")
    sums, count = score_sums(plan, chosen, rest, sampling_key(key, labels), stream)
    *scores, excess = [x / count for x in sums]
    _check_scores(with_holes(scores), excess)
    return with_holes(scores)


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
