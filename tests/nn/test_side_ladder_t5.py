"""T5's side networks made of SideLadder: parameter counts of LST, and one that runs."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import optaxtricks as ot

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class Size:
    """A T5 backbone and the side network beside it."""

    d: int
    d_ff: int
    d_kv: int
    heads: int
    layers: int
    keep: tuple[int, ...]
    reduction: int = 8


BASE = Size(768, 3072, 64, 12, 12, (1, 2, 3, 5, 6, 7, 9, 10, 11))
LARGE = Size(1024, 4096, 64, 16, 24, tuple(range(1, 24, 2)))
THREE_B = Size(1024, 16384, 128, 32, 24, (23,))
TINY = Size(16, 32, 4, 4, 3, (1, 2), reduction=2)


class NnxAttention(nnx.Module):
    """T5's attention behind its norm: no bias, no scale, narrow heads."""

    def __init__(self, size: Size, width: int, *, rngs: nnx.Rngs):
        self.heads, inner = size.heads, size.heads * size.d_kv // size.reduction
        linear = lambda i, o: nnx.Linear(i, o, use_bias=False, rngs=rngs)
        self.q, self.k, self.v = (linear(width, inner) for _ in range(3))
        self.o = linear(inner, width)
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, h: Any, memory: Any = None, bias: Any = None) -> Any:
        x = self.norm(h)
        source = x if memory is None else memory
        return h + self.o(
            _attend(self.q(x), self.k(source), self.v(source), self, bias)
        )


class NnxBlock(nnx.Module):
    """T5's layer; one for the decoder also attends to the encoder's side state."""

    def __init__(self, size: Size, cross: bool, width: int, *, rngs: nnx.Rngs):
        linear = lambda i, o: nnx.Linear(i, o, use_bias=False, rngs=rngs)
        narrow = size.d_ff // size.reduction
        self.attention = NnxAttention(size, width, rngs=rngs)
        self.cross = NnxAttention(size, width, rngs=rngs) if cross else None
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.wi, self.wo = linear(width, narrow), linear(narrow, width)

    def __call__(self, h: Any, memory: Any = None, *, bias: Any = None) -> Any:
        h = self.attention(h, bias=bias)
        if self.cross is not None:
            h = self.cross(h, memory)
        return h + self.wo(jax.nn.relu(self.wi(self.norm(h))))


class LinenAttention(nn.Module):
    """The same in Linen."""

    size: Size

    @nn.compact
    def __call__(self, h: Any, memory: Any = None, bias: Any = None) -> Any:
        inner = self.size.heads * self.size.d_kv // self.size.reduction
        linear = lambda n, name: nn.Dense(n, use_bias=False, name=name)
        x = nn.RMSNorm(name="norm")(h)
        source = x if memory is None else memory
        q, k, v = (linear(inner, name) for name in "qkv")
        out = _attend(q(x), k(source), v(source), self.size, bias)
        return h + linear(h.shape[-1], "o")(out)


class LinenBlock(nn.Module):
    """The same in Linen."""

    size: Size
    cross: bool

    @nn.compact
    def __call__(self, h: Any, memory: Any = None, *, bias: Any = None) -> Any:
        linear = lambda n, name: nn.Dense(n, use_bias=False, name=name)
        h = LinenAttention(self.size, name="attention")(h, bias=bias)
        if self.cross:
            h = LinenAttention(self.size, name="cross")(h, memory)
        x = linear(self.size.d_ff // self.size.reduction, "wi")(
            nn.RMSNorm(name="norm")(h)
        )
        return h + linear(h.shape[-1], "wo")(jax.nn.relu(x))


def _attend(q: Any, k: Any, v: Any, at: Any, bias: Any) -> Any:
    split = lambda x: x.reshape(*x.shape[:-1], at.heads, -1)
    logits = jnp.einsum("bqhd,bkhd->bhqk", split(q), split(k))
    if bias is not None:
        logits = logits + bias
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), split(v))
    return mixed.reshape(*q.shape[:-1], -1)


def _options(size: Size) -> dict[str, Any]:
    return {
        "width": size.d,
        "num_layers": size.layers,
        "reduction": size.reduction,
        "keep": size.keep,
    }


class NnxSide(nnx.Module):
    """The trained part of LST: two stacks, a relative bias and a final norm in each."""

    def __init__(self, size: Size, rngs: nnx.Rngs):
        block = lambda cross: lambda w, i, rngs: NnxBlock(size, cross, w, rngs=rngs)
        options = _options(size)
        self.encoder = ot.nn.SideLadder(block(False), merge=None, rngs=rngs, **options)
        self.decoder = ot.nn.SideLadder(block(True), merge="side", rngs=rngs, **options)
        self.biases = nnx.List(nnx.Embed(32, size.heads, rngs=rngs) for _ in range(2))
        width = self.encoder.side_width
        self.norms = nnx.List(nnx.RMSNorm(width, rngs=rngs) for _ in range(2))

    def __call__(self, encoder_taps: Any, decoder_taps: Any) -> Any:
        first, second = (_bias(table) for table in self.biases)
        memory = self.norms[0](self.encoder(encoder_taps, bias=first))
        state = self.decoder.side_state(decoder_taps, memory, bias=second)
        return self.decoder.merge_top(self.norms[1](state))


class LinenSide(nn.Module):
    """The same in Linen."""

    size: Size

    @nn.compact
    def __call__(self, encoder_taps: Any, decoder_taps: Any) -> Any:
        block = lambda cross: lambda width, layer: LinenBlock(self.size, cross)
        ladder, options = ot.nn.linen.SideLadder, _options(self.size)
        encoder = ladder(block(False), merge=None, name="encoder", **options)
        decoder = ladder(block(True), merge="side", name="decoder", **options)
        first, second = (_bias(nn.Embed(32, self.size.heads)) for _ in range(2))
        memory = nn.RMSNorm()(encoder(encoder_taps, bias=first))
        state = decoder.side_state(decoder_taps, memory, bias=second)
        return decoder.merge_top(nn.RMSNorm()(state))


def _bias(table: Any) -> Any:
    """Of the distance between positions, clipped; T5 takes its logarithm in part."""
    at = jnp.arange(5)
    distance = jnp.clip(at[None] - at[:, None], -15, 16) + 15
    return table(distance).transpose(2, 0, 1)[None]


def _taps(size: Size) -> Any:
    key = jax.random.key(0)
    whole = jax.random.normal(key, (2, size.layers + 1, 2, 5, size.d))
    return tuple([*stack] for stack in whole)


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _count_nnx(size: Size) -> int:
    side = nnx.eval_shape(lambda: NnxSide(size, nnx.Rngs(0)))
    return _count(nnx.state(side, nnx.Param))


def _count_linen(size: Size) -> int:
    init = lambda: LinenSide(size).init(jax.random.key(0), *_taps(size))
    return _count(jax.eval_shape(init)["params"])


@pytest.mark.parametrize("count", [_count_nnx, _count_linen])
@pytest.mark.parametrize(
    ("size", "published"),
    [
        (BASE, 3_878_712),
        (dataclasses.replace(BASE, keep=tuple(range(12))), 5_097_240),
        (LARGE, 9_057_328),
        (THREE_B, 2_494_896),
    ],
)
def test_the_trained_parameters_of_the_paper(
    size: Size, published: int, count: Any
) -> None:
    # The paper's code makes gates for dropped layers too, in both stacks, and uses
    # none of them.
    unused_gates = 2 * (size.layers - len(size.keep))
    assert count(size) + unused_gates == published


def test_downs_are_a_large_part_of_the_budget() -> None:
    side = nnx.eval_shape(lambda: NnxSide(BASE, nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(side, nnx.Param))
    downs = [x for path, x in flat if "down" in str(path[1])]
    assert _count(downs) == 1_476_480


def _loss(side: Any, *taps: Any) -> Any:
    return jnp.square(side(*taps) - 1.0).sum()


def test_the_decoder_trains_the_side_encoder_and_no_backbone() -> None:
    taps = _taps(TINY)
    layout, state = nnx.split(NnxSide(TINY, nnx.Rngs(0)))
    loss = lambda state, *taps: _loss(nnx.merge(layout, state), *taps)
    differ = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    grads, *back = differ(state, *taps)
    assert not any(leaf.any() for leaf in jax.tree.leaves(back))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))


def test_linen_runs_it_too() -> None:
    taps, model = _taps(TINY), LinenSide(TINY)
    params: Any = jax.jit(model.init)(jax.random.key(0), *taps)["params"]
    loss = lambda p, *taps: _loss(lambda *x: model.apply({"params": p}, *x), *taps)
    grads, *back = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, *taps)
    assert not any(leaf.any() for leaf in jax.tree.leaves(back))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))
