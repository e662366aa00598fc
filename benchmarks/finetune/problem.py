"""What a run trains: the model on its pretrained encoder, the data, the budget."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import optaxtricks as ot

from .encoder import PAIR_FEATURES, Classifier, Encoder, EncoderConfig
from .task import Examples

HEAD_SCALE = 0.02
# The cheapest generator: dropout takes a few per cent of a step with it.
KEY_KIND = "unsafe_rbg"
TAP_BATCH = 64
TEXTS = ("ids", "types", "mask")


@dataclasses.dataclass(frozen=True, eq=False)
class TappedExamples:
    """Examples with the frozen encoder's hidden states in place of token ids."""

    examples: Examples
    taps: Any

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        batch = self.examples[rows]
        kept = {name: batch[name] for name in ("mask", "labels")}
        return {"taps": self.taps[rows], **kept}


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What all recipes share; only `make` differs, where one adds to the classifier."""

    config: EncoderConfig
    encoder: Any
    num_classes: int
    train: Examples | TappedExamples
    dev: Examples
    steps: int
    batch_size: int
    make: Callable[..., Classifier] = Classifier

    @property
    def paired(self) -> bool:
        """Whether an example is a pair of texts."""
        return self.dev.paired

    def _build(self, rngs: nnx.Rngs) -> Classifier:
        model = self.make(self.config, self.num_classes, rngs=rngs)
        if self.paired:
            model.compare_texts(rngs=rngs)
        return model

    @functools.cached_property
    def model(self) -> nnx.GraphDef:
        """The classifier's structure; its parameters travel as a plain tree."""
        return nnx.split(nnx.eval_shape(lambda: self._build(nnx.Rngs(0))))[0]

    def logits(self, params: Any, batch: dict, key: jax.Array | None = None) -> Any:
        """Class scores of texts, or of taps; a key turns dropout on."""
        model: Any = nnx.merge(self.model, params)
        dropout = {"deterministic": True}
        if key is not None:
            dropout = {"deterministic": False, "rngs": nnx.Rngs(dropout=key)}
        if "taps" in batch:
            return model.from_taps(batch["taps"], batch["mask"], **dropout)
        return model(batch["ids"], batch["types"], batch["mask"], **dropout)

    def loss(self, params: Any, batch: dict, key: jax.Array) -> jax.Array:
        """Mean cross-entropy of a batch, with dropout."""
        losses = optax.softmax_cross_entropy_with_integer_labels(
            self.logits(params, batch, key), batch["labels"]
        )
        return losses.mean()

    def log_likelihood(self, params: Any, example: dict) -> jax.Array:
        """log p(label | text) of one example, without dropout."""
        batch = jax.tree.map(lambda x: x[None], example)
        scores = jax.nn.log_softmax(self.logits(params, batch)[0])
        return scores[example["labels"]]

    def initial(self, seed: int) -> Any:
        """Pretrained encoder, fresh head and additions; new buffers, as steps donate.

        The head of a seed is the same in all models.
        """
        features = PAIR_FEATURES if self.paired else 1
        shape = (features * self.config.hidden_size, self.num_classes)
        kernel = np.random.default_rng([seed, 1]).normal(0.0, HEAD_SCALE, shape)
        head = {
            "bias": jnp.zeros(self.num_classes, jnp.float32),
            "kernel": jnp.array(kernel, jnp.float32),
        }
        given = {"encoder": jax.tree.map(jnp.array, self.encoder), "head": head}
        return overlay(self._fresh(seed), given)

    @functools.cached_property
    def _fresh(self) -> Callable[[int], Any]:
        """Initial values, by seed, of the leaves that the checkpoint does not have."""
        given = {"encoder": self.encoder, "head": {"bias": 0, "kernel": 0}}

        def fresh(key: jax.Array) -> Any:
            model = self._build(nnx.Rngs(key))
            return _lacking(nnx.to_pure_dict(nnx.state(model, nnx.Param)), given)

        compiled = jax.jit(fresh)  # which computes no value that is not returned
        return lambda seed: compiled(jax.random.key(seed, impl=KEY_KIND))

    def batches(self, seed: int) -> Iterator[dict]:
        """`steps` batches, epoch after epoch, each in a fresh order."""
        rng, order = np.random.default_rng([seed, 0]), np.empty(0, np.int64)
        for _ in range(self.steps):
            while len(order) < self.batch_size:
                order = np.concatenate([order, rng.permutation(len(self.train))])
            yield self.train[order[: self.batch_size]]
            order = order[self.batch_size :]

    def tapped(self) -> "Problem":
        """The same with the training examples' hidden states, computed once.

        There is no dropout in the encoder then.
        """
        make = lambda: Encoder(self.config, rngs=nnx.Rngs(0))
        structure = nnx.split(nnx.eval_shape(make))[0]

        def taps(params: Any, batch: dict) -> list[jax.Array]:
            encoder = nnx.merge(structure, params)
            texts = (batch[name] for name in TEXTS)
            return encoder.taps(*texts, deterministic=True)

        examples: Any = self.train
        texts = {name: examples[:][name] for name in TEXTS}
        cache = ot.nn.cache_taps(taps, texts, params=self.encoder, batch_size=TAP_BATCH)
        return dataclasses.replace(self, train=TappedExamples(examples, cache))


def overlay(base: Any, values: Any) -> Any:
    """Trees of dicts: `base`, with the leaves of `values` added or put in place."""
    if not isinstance(base, dict) or not isinstance(values, dict):
        return values
    both = {k: overlay(base[k], v) if k in base else v for k, v in values.items()}
    return {**base, **both}


def _lacking(tree: dict, given: dict) -> dict:
    """The part of a tree of dicts that another one lacks."""
    found = {}
    for key, value in tree.items():
        if key not in given:
            found[key] = value
        elif isinstance(value, dict) and (rest := _lacking(value, given[key])):
            found[key] = rest
    return found
