"""Labels from path patterns, for `optax.partition`."""

from collections.abc import Mapping
from typing import Any

import jax

from .._core.known_paths import known_paths
from .._core.paths import flatten, holes, leaves_with_paths, listing
from .._core.selectors import compiled


class PathLabels:
    """A function from a tree to a tree of labels; built by :func:`label_by_path`."""

    def __init__(self, rules: Mapping[str, str], default: str | None):
        self._rules = [
            (pattern, compiled(pattern, name="pattern"), label)
            for pattern, label in rules.items()
        ]
        self._default = default

    def __repr__(self) -> str:
        rules = {pattern: label for pattern, _, label in self._rules}
        return f"PathLabels({rules}, default={self._default!r})"

    def __call__(self, tree: Any) -> Any:
        """The tree of labels of `tree`; see :func:`label_by_path`."""
        leaves, gaps = leaves_with_paths(tree), holes(tree)
        labels = [self._label(path) for path, _ in leaves]
        if leaves:
            self._check([path for path, _ in leaves], labels, gaps)
        return jax.tree.unflatten(flatten(tree)[1], labels)

    def _label(self, path: str) -> str | None:
        for _, pattern, label in self._rules:
            if pattern.search(path):
                return label
        return self._default

    def _check(
        self, paths: list[str], labels: list[str | None], gaps: list[str]
    ) -> None:
        bare = [p for p, label in zip(paths, labels, strict=True) if label is None]
        if bare:
            raise ValueError(
                f"no pattern covers {listing(bare)}, and there is no default label."
            )
        # A leaf that Optax masked out still shows that its pattern is no misprint.
        known = paths + gaps
        idle = [s for s, p, _ in self._rules if not any(map(p.search, known))]
        if idle:
            raise ValueError(
                f"patterns that match no leaf: {listing(idle)}. "
                f"{known_paths(known, idle[0])}"
            )


def label_by_path(
    rules: Mapping[str, str], *, default: str | None = None
) -> PathLabels:
    """Labels leaves by regular expressions searched in their paths.

    The first pattern that matches decides; a number at its end is a whole one, as in
    :func:`select`. The result is what ``optax.partition``
    takes as ``param_labels``. It gives ``nnx.State`` of Variables (which
    ``nnx.Optimizer`` passes to ``init``) and of arrays (which it passes to
    ``update``) the same labels.

    Args:
      rules: pattern -> label, in order of precedence.
      default: the label of leaves that no pattern matches; without it such a leaf
        is an error.

    Returns:
      A callable from a tree to a tree of labels with the same structure.

    Raises:
      TypeError: a pattern or label is not a string.
      ValueError: ``rules`` is empty or a pattern is invalid; and, when called, an
        uncovered leaf without a default, or a pattern that matches no leaf. Both list
        the paths. A pattern shadowed by earlier ones is no error.

    Examples:
      >>> import optaxtricks as ot
      >>> labels = ot.label_by_path({"bias$": "plain", "^emb": "slow"}, default="fast")
      >>> labels({"emb": 0.0, "layer": {"kernel": 1.0, "bias": 2.0}})
      {'emb': 'slow', 'layer': {'bias': 'plain', 'kernel': 'fast'}}
    """
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must map patterns to labels, got {rules!r}.")
    if not rules:
        raise ValueError("rules must hold at least one pattern.")
    for pattern, label in rules.items():
        if not isinstance(pattern, str) or not isinstance(label, str):
            raise TypeError(f"rules must map str to str, got {pattern!r}: {label!r}.")
    if default is not None and not isinstance(default, str):
        raise TypeError(f"default must be a string or None, got {default!r}.")
    return PathLabels(rules, default)
