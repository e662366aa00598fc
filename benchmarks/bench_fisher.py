"""Fisher information of a BERT-like encoder, against one plain batch-gradient pass."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import optaxtricks as ot

from . import harness
from .finetune.encoder import Classifier, parse_config

Batch = tuple[jax.Array, jax.Array]
BATCHES, BATCH, LENGTH, CLASSES = 4, 16, 48, 2
# all-MiniLM-L6: 22.6 million parameters, 11.7 million of them in the word table.
SIZES = {
    "tiny": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1},
    "full": {"vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 6},
}


def classifier(size: str) -> tuple[Any, Any]:
    """The graph and the parameters of the encoder with a classifier on top."""
    width = SIZES[size]["hidden_size"]
    raw = {
        **SIZES[size],
        "model_type": "bert",
        "num_attention_heads": width // 32,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 512,
        "hidden_dropout_prob": 0.0,
    }
    config = parse_config(raw, __name__)
    return nnx.split(Classifier(config, CLASSES, rngs=nnx.Rngs(0)), nnx.Param)


def examples(size: str) -> Batch:
    """Random token ids and labels for four batches."""
    rng = np.random.default_rng(0)
    ids = rng.integers(SIZES[size]["vocab_size"], size=(BATCHES * BATCH, LENGTH))
    labels = rng.integers(CLASSES, size=BATCHES * BATCH)
    return jnp.asarray(ids, jnp.int32), jnp.asarray(labels, jnp.int32)


def likelihood(graph: Any) -> Callable[[Any, Batch], jax.Array]:
    """Mean log-likelihood of a batch as a function of parameters."""

    def log_likelihood(params: Any, batch: Batch) -> jax.Array:
        ids, labels = batch
        model = nnx.merge(graph, params)
        logits = model(ids, jnp.zeros_like(ids), jnp.ones(ids.shape, bool))
        logs = jax.nn.log_softmax(logits)
        return jnp.take_along_axis(logs, labels[:, None], axis=1).mean()

    return log_likelihood


def sides(size: str) -> dict[str, tuple[Any, Callable[[Any, Batch], Any]]]:
    """Name -> (parameters to differentiate, function to compile)."""
    graph, params = classifier(size)
    batch_mean = likelihood(graph)
    one = lambda params, example: batch_mean(
        params, jax.tree.map(lambda x: x[None], example)
    )
    rest = lambda path, leaf: "word" not in path
    body, table = ot.split(params, rest)
    body_mean = lambda body, batch: batch_mean(ot.merge(body, table), batch)
    fisher = lambda **how: (
        lambda params, examples: ot.fisher_information(one, params, examples, **how)
    )
    return {
        "batch gradient": (params, gradient_pass(batch_mean)),
        "fisher, microbatch 1": (params, fisher()),
        "fisher, microbatch 4": (params, fisher(microbatch_size=4)),
        "fisher, microbatch 16": (params, fisher(microbatch_size=16)),
        "batch gradient, no table": (body, gradient_pass(body_mean)),
        "fisher, no table": (params, fisher(where=rest)),
    }


def gradient_pass(mean: Callable[[Any, Batch], jax.Array]) -> Callable[..., Any]:
    """The sum of plain gradients over batches: the same pass without the Fisher."""

    def run(params: Any, examples: Batch) -> Any:
        batches = jax.tree.map(lambda x: x.reshape(-1, BATCH, *x.shape[1:]), examples)
        add = lambda total, batch: (
            jax.tree.map(jnp.add, total, jax.grad(mean)(params, batch)),
            None,
        )
        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zeros, batches)[0]

    return run


def main(argv: Sequence[str] | None = None) -> None:
    """Compares a pass over four batches; compilation is not counted."""
    options = harness.arguments(__doc__, argv)
    data = examples(options.size)
    compiled = {
        name: (jax.jit(run).lower(params, data).compile(), params)
        for name, (params, run) in sides(options.size).items()
    }
    calls = {name: (lambda c=c, p=p: c(p, data)) for name, (c, p) in compiled.items()}
    seconds = harness.alternate(calls, windows=3 if options.size == "tiny" else 5)
    rows = []
    for name in calls:
        base = "batch gradient" + (", no table" if "no table" in name else "")
        rows.append(
            {
                "side": name,
                "ms a batch": 1e3 * seconds[name] / BATCHES,
                "ratio to its batch gradient": seconds[name] / seconds[base],
                "temp MB": harness.temp_bytes(compiled[name][0]) / 1e6,
            }
        )
    harness.publish("bench_fisher", rows, options)


if __name__ == "__main__":
    main()
