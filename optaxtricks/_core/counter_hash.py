"""Random words from counters: a pure function of (key, step, leaf path, index).

Why not `jax.random`: one threefry draw per entry costs ten times an AdamW step and
an array as large as the model. An integer hash of the entry's index is a dozen
operations that XLA fuses into the loop that reads the entry anyway, and it needs no
communication when the leaf is sharded, since every device knows its own indices.

The words of a leaf are hashed once, in `leaf_words`; the words of a step once per
update, in `step_words`; their exclusive-or seeds `entry_words`, the only part that
runs per entry.
"""

import collections
import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .layers import layer_seen
from .numbers import static_hint
from .paths import listing
from .positions import index_along

# Shifts and multipliers of the 32-bit mixer "triple32", found by search for low
# avalanche bias (github.com/skeeto/hash-prospector).
_FIRST, _SECOND, _THIRD = (np.uint32(c) for c in (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB))
_GOLDEN = np.uint32(0x9E3779B9)
_NO_STEP = np.zeros(2, np.uint32)
WORD = 2**32
# In newer releases of JAX at home in jax.errors.
_NAME = "InconclusiveDimensionOperation"
_INCONCLUSIVE = getattr(jax.errors if hasattr(jax.errors, _NAME) else jax.core, _NAME)

Granularity = Literal["element", "row", "leaf"]
GRANULARITIES = ("element", "row", "leaf")
AxisName: TypeAlias = str | Sequence[str]
"""One axis or several of those that `jax.shard_map` or `jax.vmap` maps over."""


def key_words(key: Any) -> Any:
    """The raw words of a key: an integer, a typed JAX key, or a legacy uint32 key.

    An integer gives the words that `jax.random.key` of it has under threefry, whether
    Python's, an array or traced; a traced one that is negative counts by its bits.
    """
    if isinstance(key, jax.Array | np.ndarray | np.integer):
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if key.shape:
                raise ValueError(f"key must be one key, got shape {key.shape}.")
            return jax.random.key_data(key)
        if key.dtype == np.uint32 and key.shape in ((2,), (4,)):
            return key
        if key.shape == () and jnp.issubdtype(key.dtype, jnp.integer):
            if isinstance(key, jax.core.Tracer):
                return _words_of(key)
            key = int(key)
    if isinstance(key, int) and not isinstance(key, bool):
        if not 0 <= key < 2**64:
            raise ValueError(f"key must lie in [0, 2**64), got {key!r}.")
        return np.array(divmod(key, WORD), np.uint32)
    raise TypeError(
        "key must be an int, a key from jax.random.key, or a one-dimensional uint32 "
        f"key, got {key!r}{static_hint('key', key)}."
    )


def _words_of(number: jax.Array) -> jax.Array:
    """The high and the low word of a traced integer."""
    high = number >> 32 if number.dtype.itemsize > 4 else jnp.zeros_like(number)
    return jnp.stack([high, number]).astype(jnp.uint32)


def leaf_words(key: Any, paths: Sequence[str]) -> tuple[jax.Array, ...]:
    """Two uint32 words for each leaf, from the key and the leaf's path alone.

    Where one layer of a stack is seen at a time, from the layer's number too.

    Raises:
      ValueError: two leaves have one path, and so would share their words.
    """
    twice = [path for path, n in collections.Counter(paths).items() if n > 1]
    if twice:
        raise ValueError(f"two leaves share a path: {listing(twice)}.")
    words = key_words(key)
    # hashlib, as Python's own hash of a string changes from process to process.
    digests = [hashlib.blake2b(path.encode(), digest_size=8).digest() for path in paths]
    names = np.frombuffer(b"".join(digests), "<u4").reshape(-1, 2).astype(np.uint32)
    both = names[:, 0], names[:, 1]
    for i in range(words.shape[0]):
        both = _absorb(*both, words[i : i + 1])
    pairs = [jnp.stack(pair) for pair in zip(*both, strict=True)]
    return tuple(_of_layer(*each) for each in zip(pairs, paths, strict=True))


def _of_layer(words: jax.Array, path: str) -> jax.Array:
    layer = layer_seen(path)
    return words if layer is None else _numbered(words, layer.number)


# Jitted, so that all leaves share one trace.
@jax.jit
def _numbered(words: jax.Array, number: jax.Array) -> jax.Array:
    # For layer 0 too: the words of a leaf that is no stack are none of a stack's.
    word = number.astype(jnp.uint32).reshape(1)
    return jnp.concatenate(_absorb(words[:1], words[1:], word))


def step_words(step: Any) -> jax.Array:
    """Two uint32 words for a step."""
    count = jnp.asarray(step).astype(jnp.uint32).reshape(1)
    zero = np.zeros(1, np.uint32)
    return jnp.concatenate(_absorb(*_absorb(zero, zero, count), count))


def axis_names(axis_name: AxisName | None) -> tuple[str, ...]:
    """The names of mapped axes; none for None."""
    names = () if axis_name is None else axis_name
    names = (names,) if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not all(isinstance(x, str) for x in names):
        raise TypeError(f"axis_name must be names of axes, got {axis_name!r}.")
    if len(set(names)) != len(names):
        raise ValueError(f"axis_name must name an axis once, got {axis_name!r}.")
    return tuple(names)


def shard_words(words: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The words of one shard along mapped axes: from those of all, and its number."""
    if not axes:
        return words
    try:
        number = jax.lax.axis_index(axes)
    except NameError:
        raise ValueError(
            f"axis_name must name axes that are mapped over where the draw is made, as "
            f"inside jax.shard_map, got {axes!r}."
        ) from None
    return _numbered(words, number)


def entry_words(
    like: Any, words: Any, granularity: str, now: Any = _NO_STEP
) -> jax.Array:
    """One uint32 for each entry of `like`, from a seed and the entry's index alone.

    The seed is the exclusive-or of a leaf's two words with those of a step, `now`. The
    second enters between the rounds, so that seeds which agree in one word still give
    unrelated streams.

    Words are read as numbers, and the index counts from one of the step: XLA for GPUs
    merges loops that read one array, and which do is for `grouping.read_by_few` to say.
    """
    high, low = index_axes(like.shape, granularity)
    first, second = words[0] ^ now[0], words[1] ^ now[1]
    if high:
        first, second = _absorb(first, second, index_along(like, high))
    return _mix(index_along(like, low, own=now[0]) ^ first, second)


def last_kept_word(keep_rate: Any) -> jax.Array:
    """The largest 32-bit word that is kept at this rate; all of them at rate 1."""
    rate = jnp.asarray(keep_rate, jnp.float32)
    # The largest float32 below 1 times 2**32 still fits a uint32; 1 itself does not.
    below_one = jnp.minimum(rate, np.float32(1 - 2**-24)) * np.float32(WORD)
    word = jnp.maximum(below_one, np.float32(1)).astype(jnp.uint32) - np.uint32(1)
    return jnp.where(rate >= 1, np.uint32(WORD - 1), word)


def index_axes(
    shape: Sequence[int], granularity: str, *, word: int = WORD
) -> tuple[range, range]:
    """The axes counted by the high and by the low index word of an entry.

    The low word counts as many trailing axes as fit into it and the high word the
    rest, so two entries never share both words. A symbolic size of `jax.export` counts
    as one that fits, unless it cannot be: so the axes are those of the concrete shape.

    Raises:
      ValueError: one axis, or all that is left for the high word, exceeds a word.
    """
    end = {"element": len(shape), "row": min(1, len(shape)), "leaf": 0}[granularity]
    start = end
    while start > 0 and _fits(math.prod(shape[start - 1 : end]), word):
        start -= 1
    if start == end > 0 or not _fits(math.prod(shape[:start]), word):
        raise ValueError(
            f"a leaf of shape {tuple(shape)} has more than 2**32 entries on one axis "
            "or on its leading axes together; reshape it."
        )
    return range(start), range(start, end)


def _fits(count: Any, word: int) -> bool:
    """Whether a word counts so many, or may do so where the number is symbolic."""
    try:
        return bool(count <= word)
    except _INCONCLUSIVE:
        return True


def _mix(x: Any, second: Any) -> Any:
    """Three rounds of 32-bit mixing with a second word added after the first."""
    x = (x ^ (x >> 17)) * _FIRST
    x = (x ^ (x >> 11)) + second
    x = x * _SECOND
    x = (x ^ (x >> 15)) * _THIRD
    return x ^ (x >> 14)


def _absorb(first: Any, second: Any, word: Any) -> tuple[Any, Any]:
    """Mixes a word into a pair; a bijection of the pair for each word."""
    first = first ^ _mix(word ^ second, _GOLDEN)
    return first, second ^ _mix(first, _FIRST ^ word)
