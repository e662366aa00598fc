"""Patterns searched in paths, in which numbers are matched whole."""

import functools
import re

# Not between two digits: where a match may begin and end without cutting a number.
_UNCUT = r"(?!(?<=[0-9])[0-9])"
_CLASS = r"\[\^?\]?(?:\\.|[^]\\])*\]"
_TOKEN = re.compile(
    rf"\\(?:[0-9]+|.)|{_CLASS}|\(\?(?:P<\w+>|P=\w+(?=\))|\(\w+\)|#[^)]*(?=\))|"
    r"<?[=!]|[a-zA-Z-]*[:>]?)|\{[0-9]*,?[0-9]*\}|.",
    re.DOTALL,
)
_GLOBAL_FLAGS = re.compile(r"\(\?[aiLmsux]+\)")
_GROUP = re.compile(r"\(([^()]*)\)")


@functools.lru_cache(maxsize=1024)
def whole_numbers(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    """The pattern, compiled; an alternative of it that begins or ends with a digit
    written out finds that digit in no longer number.

    `layers/1` is not found in `layers/10`. What stands for any digit, `\\d` or `[0-9]`,
    is none that is written out. Patterns with comments (`re.VERBOSE`) stay as they are.

    Raises:
      re.error: an invalid pattern.
    """
    found = re.compile(pattern)
    text, flags = found.pattern, found.flags
    if flags & re.VERBOSE or not isinstance(text, str):
        return found
    start = m.end() if (m := _GLOBAL_FLAGS.match(text)) else 0
    parts = [_uncut(part) for part in _alternatives(_TOKEN.findall(text[start:]))]
    whole = "|".join(parts)
    return found if whole == text[start:] else re.compile(whole, flags)


def _alternatives(tokens: list[str]) -> list[list[str]]:
    """The tokens of each alternative, those in groups left together."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += token.startswith("(") - (token == ")")
        if token == "|" and not depth:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _uncut(tokens: list[str]) -> str:
    text = "".join(tokens)
    ends = "".join(map(_kind, tokens))
    while (shorter := _GROUP.sub(_summary, ends)) != ends:
        ends = shorter
    first, last = _ends(ends)
    return f"{_UNCUT * first}{text}{_UNCUT * last}"


def _kind(token: str) -> str:
    """A token in brief: `1` for a digit, `?` after what may lack, `e` for else."""
    if token in ("^", "$", "+") or token in (r"\b", r"\B", r"\A", r"\Z"):
        return ""
    if token in ("?", "*") or token.startswith("{0,") or token.startswith("{,"):
        return "?"
    if len(token) > 2 and token.startswith("{"):
        return ""
    if token in ("(", ")", "|"):
        return token
    if token.startswith("("):
        return "("
    if token.startswith("[") and len(token) > 1:
        some = re.search("[0-9]", token.replace("0-9", "")) and token[1] != "^"
        return "1" if some else "e"
    return "1" if token in "0123456789" else "e"


def _summary(group: re.Match[str]) -> str:
    """A group in brief: what it may begin with, and what it may end with."""
    ends = [_ends(part) for part in group[1].split("|")]
    first, last = (any(side) for side in zip(*ends, strict=True))
    return {(0, 0): "e", (1, 0): "1e", (0, 1): "e1", (1, 1): "1"}[first, last]


def _ends(brief: str) -> tuple[bool, bool]:
    """Whether a digit may be what comes first, and what comes last."""
    first = re.match(r"(?:.\?+)*1", brief)
    last = re.search(r"1\?*(?:.\?+)*$", brief)
    return first is not None, last is not None
