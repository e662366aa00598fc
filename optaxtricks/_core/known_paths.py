"""The paths of a tree in an error about a pattern or an entry that has no leaf."""

import collections
import difflib
import re
from collections.abc import Sequence

from .paths import listing

_ALL, _NEAREST = 30, 8


def known_paths(paths: Sequence[str], wanted: str = "") -> str:
    """What there is: all of it or, of many paths, their tops and the nearest ones.

    Args:
      paths: of leaves.
      wanted: the pattern or path that was not found.
    """
    if len(paths) <= _ALL:
        return f"Paths: {listing(paths)}."
    steps = [path.split("/") for path in paths]
    shared = 0
    shortest = min(map(len, steps))
    while shared < shortest - 1 and len({step[shared] for step in steps}) == 1:
        shared += 1
    tops = collections.Counter("/".join(step[: shared + 1]) for step in steps)
    # Backslash and letter is a class, not text.
    words = re.findall(r"\w+", re.sub(r"\\\w", " ", wanted))
    likeness = {step: _likeness(step, words) for step in {s for p in steps for s in p}}
    score = lambda path: (
        -sum(
            max(likeness[step][i] for step in path.split("/"))
            for i in range(len(words))
        )
    )
    near = sorted(paths, key=score)[:_NEAREST]
    count = lambda n: f" ({n} leaves)" if n > 1 else ""
    counted = ", ".join(f"{top!r}{count(n)}" for top, n in tops.most_common(_ALL))
    more = f", and {len(tops) - _ALL} more" if len(tops) > _ALL else ""
    return (
        f"Top level: {counted}{more}. {'Nearest' if words else 'Such as'}: "
        f"{listing(near)}."
    )


def _likeness(step: str, words: Sequence[str]) -> list[float]:
    return [difflib.SequenceMatcher(None, step, word).ratio() for word in words]
