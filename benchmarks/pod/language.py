"""A decoder that learns the next words of the standard library's own sources."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

import optaxtricks as ot

from ..embedding_anomaly.text import read_text
from ..finetune.errors import InputError
from .attention import QUERIES
from .decoder import Decoder, LadderDecoder, LadderTop, Top
from .layout import Layout, Rules, param_shardings
from .parts import SIZES, Build, DecoderConfig
from .program import Work
from .recipes import RECIPES

WORDS, FILES = 16_384, 200
LORA_RANK = 16
TAP_BATCH = 16
STACKED = r"^layers/"
KINDS = {"full": Decoder, "lora": Decoder, "ladder": LadderDecoder, "cached": LadderTop}

# Both mesh axes divide every kernel; what the first kernels of a block give is divided
# over "model", and so is what the second takes in.
LAYERS: Rules = {
    r"^layers/.*(query|key|value|gate|up)/kernel$": ("data", "model"),
    r"^layers/.*(output|down)/kernel$": ("model", "data"),
}
TABLE: Rules = {r"^word/embedding$": ("model", "data")}
HEAD: Rules = {r"^head/kernel$": ("data", "model")}
LORA: Rules = {r"/lora_a$": ("data", None), r"/lora_b$": (None, "model")}
# A ladder computes by length, as the taps lie, with whole kernels.
SIDE: Rules = {r"^side/.*kernel$": ("data", None)}


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder of a size, as a recipe adapts it.

    Attributes:
      config: its sizes.
      kind: a key of `KINDS`.
      build: its dtypes, layout and remat.
      length: positions of a text.
    """

    config: DecoderConfig
    kind: str
    build: Build
    length: int

    @property
    def rules(self) -> Rules:
        """Where its parameters lie."""
        rules: dict[str, Any] = {}
        if self.kind != "cached":
            rules |= LAYERS
        if self.kind != "cached" or self.config.tied:
            rules |= TABLE
        if not self.config.tied:
            rules |= HEAD
        return {**rules, **{"lora": LORA, "full": {}}.get(self.kind, SIDE)}

    def make(self, key: jax.Array, kind: type[Top] | None = None) -> Any:
        """The module with fresh parameters."""
        kind = kind or KINDS[self.kind]
        return kind(self.config, self.build, rngs=nnx.Rngs(params=key))

    def fresh(self, key: jax.Array) -> Any:
        """Parameters; above cached taps, those of the whole model of that key."""
        if self.kind != "cached":
            return _params(self.make(key))
        whole = _params(self.make(key, LadderDecoder))
        names = _params(nnx.eval_shape(self.make, key))
        return {name: whole[name] for name in names}

    def loss(self, params: Any, batch: Any, key: jax.Array) -> jax.Array:
        """Of the next words; there is no dropout."""
        del key
        graph, _ = nnx.split(nnx.eval_shape(self.make, jax.random.key(0)), nnx.Param)
        model: Any = nnx.merge(graph, nnx.State(params))
        tokens = batch["tokens"]
        given = batch["taps"] if self.kind == "cached" else tokens[:, :-1]
        return model.loss(model(given), tokens[:, 1:])

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """A batch of one."""
        tokens = jax.ShapeDtypeStruct((1, self.length + 1), jnp.int32)
        if self.kind != "cached":
            return {"tokens": tokens}
        shape = 1, self.config.layers + 1, self.length, self.config.width
        return {"tokens": tokens, "taps": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}

    def train(self, mesh: Mesh, seed: int) -> Any:
        """All texts, with their taps where these are read."""
        words = read_text(min(self.config.vocabulary, WORDS), FILES).train
        if not (count := (len(words) - 1) // self.length):
            raise InputError(
                f"--length: {self.length} is more than the text's {len(words)} words."
            )
        starts = self.length * np.arange(count)[:, None]
        windows = words[starts + np.arange(self.length + 1)]
        if self.kind != "cached":
            return Texts(windows)
        return Texts(windows, self._cached(windows, mesh, seed))

    def _cached(self, windows: np.ndarray, mesh: Mesh, seed: int) -> Any:
        if jax.process_count() > 1:
            raise InputError("--recipe: taps are cached by one process alone.")
        backbone = lambda key: self.make(key, Decoder)
        graph, shapes = nnx.split(nnx.eval_shape(backbone, jax.random.key(0)))
        shapes = nnx.to_pure_dict(shapes)
        places = param_shardings(shapes, {**LAYERS, **TABLE, **HEAD}, mesh)
        make = jax.jit(lambda key: _params(backbone(key)), out_shardings=places)

        def taps(params: Any, tokens: jax.Array) -> jax.Array:
            first, others = nnx.merge(graph, nnx.State(params)).taps(tokens)
            return jnp.concatenate([first[:, None], jnp.moveaxis(others, 0, 1)], axis=1)

        params = make(jax.random.key(seed))
        batches = windows[:, :-1]
        return ot.nn.cache_taps(taps, batches, params=params, batch_size=TAP_BATCH)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Windows of words, each one longer than its text; with taps by window."""

    windows: np.ndarray
    taps: Any = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        found = {"tokens": self.windows[rows]}
        return found if self.taps is None else {**found, "taps": self.taps[rows]}


def open_decoder(options: argparse.Namespace, mesh: Mesh) -> Work:
    """What the flags ask for."""
    if options.length > QUERIES and options.length % QUERIES:
        raise InputError(
            f"--length: must be at most {QUERIES}, or a multiple of it, got "
            f"{options.length}."
        )
    recipe = RECIPES[options.recipe]
    build = Build(
        layout=Layout(mesh),
        param_dtype=recipe.param_dtype,
        remat=options.remat,
        lora_rank=LORA_RANK if recipe.model == "lora" else 0,
    )
    model = Model(SIZES[options.model], recipe.model, build, options.length)
    train: Callable[[], Any] = lambda: model.train(mesh, options.seed)
    return Work(
        loss=model.loss,
        fresh=model.fresh,
        rules=model.rules,
        example=model.example,
        length=options.length,
        train=train,
        specs={"taps": ("data", None, "model")},
        settings={"length": options.length},
        stacked=STACKED,
        divided={
            "--length:": options.length,
            "--model: its number of heads,": model.config.heads,
        },
    )


def _params(model: nnx.Module) -> Any:
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))
