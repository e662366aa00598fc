# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Ladder side-tuning
#
# Adapters save parameters, but the gradient still runs back through the whole backbone.
# A ladder (LST) is a narrow network beside it: each rung reads one activation of the
# frozen backbone, and gradients flow along the ladder alone. Memory and time of the
# backward pass of the backbone are gone. With the taps $x_i$ behind a stop-gradient,
#
# $$
# h \leftarrow B_i\bigl(\mu_i h + (1 - \mu_i)\,D_i\,x_i\bigr), \qquad
# \mu_i = \sigma(a_i / T).
# $$

# %%
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import optaxtricks as ot
from benchmarks.finetune.checkpoint import open_checkpoint
from benchmarks.finetune.docstrings import docstring_task
from benchmarks.finetune.encoder import Encoder, EncoderConfig, Layer

SMALL = os.environ.get("OPTAXTRICKS_SMALL") == "1"

plt.style.use("petroff10")  # colours that differ for colour-blind readers too
plt.rcParams |= {"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}

# %% [markdown]
# ## A pretrained backbone and a task
#
# MiniLM-L6 and the benchmark's own task, cut to a few classes: which module of the
# standard library does a docstring come from? The small size has a random encoder of
# one layer and random tokens.

# %%
CLASSES, TRAIN, TEST, TOKENS = (3, 16, 16, 8) if SMALL else (8, 256, 192, 32)
BATCH, EPOCHS, REDUCTION = (8, 1, 4) if SMALL else (16, 3, 8)


def random_texts():
    config = EncoderConfig(
        "bert", 50, 16, 1, 2, 32, TOKENS, 2, "gelu", 1e-12, 0.1, pad_token_id=0
    )
    rng = np.random.default_rng(0)
    shape = (TRAIN + TEST, TOKENS)
    ids = rng.integers(1, 50, shape)
    labels = rng.integers(CLASSES, size=TRAIN + TEST)
    return config, None, ids, np.ones(shape, bool), labels


def docstrings():
    checkpoint = open_checkpoint(None)
    train, test = docstring_task()
    names = sorted({row["label"] for row in train})[:CLASSES]
    rng = np.random.default_rng(0)

    def some(rows, count):
        rows = [row for row in rows if row["label"] in names]
        return [rows[i] for i in rng.permutation(len(rows))[:count]]

    rows = some(train, TRAIN) + some(test, TEST)
    checkpoint.tokenizer.enable_truncation(TOKENS)
    checkpoint.tokenizer.enable_padding(length=TOKENS)
    found = checkpoint.tokenizer.encode_batch([row["text"] for row in rows])
    ids = np.array([text.ids for text in found])
    mask = np.array([text.attention_mask for text in found], bool)
    labels = np.array([names.index(row["label"]) for row in rows])
    return checkpoint.config, checkpoint.encoder, ids, mask, labels


config, weights, ids, mask, labels = random_texts() if SMALL else docstrings()
LAYERS, WIDTH = config.num_hidden_layers, config.hidden_size
encoder = Encoder(config, rngs=nnx.Rngs(0))
if weights is not None:
    nnx.update(encoder, weights)
graph, backbone = nnx.split(encoder)
backbone = nnx.to_pure_dict(backbone)
data = {"ids": ids.astype(np.int32), "mask": mask, "label": labels.astype(np.int32)}
train = {name: x[:TRAIN] for name, x in data.items()}
test = {name: x[TRAIN:] for name, x in data.items()}
count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
print(f"{TRAIN} texts to train on, {len(labels) - TRAIN} to test")
print(f"{count(backbone):,} parameters in the backbone")

# %% [markdown]
# `SideLadder` takes the taps as a list: the embeddings, then the output of every layer.


# %%
def attention_bias(mask):
    return jnp.where(mask[:, None, None, :], 0.0, jnp.finfo(jnp.float32).min)


def taps_of(backbone, batch):
    encoder = nnx.merge(graph, backbone)
    ids, bias = batch["ids"], attention_bias(batch["mask"])
    taps = [encoder.embeddings(ids, jnp.zeros_like(ids), deterministic=True)]
    for layer in encoder.layers:
        taps.append(layer(taps[-1], bias, deterministic=True))
    return taps


# %% [markdown]
# ## The side network, cut out of the backbone
#
# Side blocks are layers of the backbone's kind, narrower by the reduction, with as many
# heads. LST starts them as a pruned copy of the backbone. A `PruneGroup` says which
# axes count the same channels: one group for all that reads or writes the residual
# stream, and for each layer one for the heads and one for the hidden units. Each keeps
# its most important channels, here by magnitude (`fisher_information` gives a better
# importance where it is affordable).

# %%
side_config = EncoderConfig(
    config.model_type,
    config.vocab_size,
    WIDTH // REDUCTION,
    LAYERS,
    config.num_attention_heads,
    config.intermediate_size // REDUCTION,
    config.max_position_embeddings,
    config.type_vocab_size,
    config.hidden_act,
    config.layer_norm_eps,
    config.hidden_dropout_prob,
    config.pad_token_id,
)

stream = ot.PruneGroup(
    {
        "(query|key|value|up)/kernel$": 0,
        "(output|down)/kernel$": 1,
        "embeddings/word": 1,
    },
    followers={
        "embeddings/(position|token_type)": 1,
        "norm/(scale|bias)$": 0,
        "(output|down)/bias$": 0,
    },
)
heads = [
    ot.PruneGroup(
        {
            f"layers/{i}/.*(query|key|value)/kernel$": 1,
            f"layers/{i}/.*output/kernel$": 0,
        },
        followers={f"layers/{i}/.*(query|key|value)/bias$": 0},
        heads=config.num_attention_heads,
    )
    for i in range(LAYERS)
]
hidden = [
    ot.PruneGroup(
        {f"layers/{i}/up/kernel$": 1, f"layers/{i}/down/kernel$": 0},
        followers={f"layers/{i}/up/bias$": 0},
    )
    for i in range(LAYERS)
]
magnitude = jax.tree.map(np.abs, backbone)
pruned = ot.structural_prune(
    backbone, magnitude, [stream, *heads, *hidden], keep_fraction=1 / REDUCTION
)
for name, leaf in (("query", "kernel"), ("query", "bias")):
    shapes = [t["layers"][0]["attention"][name][leaf].shape for t in (backbone, pruned)]
    print(f"layer 0 {name}/{leaf}: {shapes[0]} -> {shapes[1]}")


def block(width, layer, *, rngs):
    return Layer(side_config, rngs=rngs)


def new_side(prune, merge="gated"):
    """Ladder and classifier as a tree, and its structure."""
    rngs = nnx.Rngs(1)
    ladder = ot.nn.SideLadder(
        block,
        width=WIDTH,
        num_layers=LAYERS,
        reduction=REDUCTION,
        merge=merge,
        num_heads=config.num_attention_heads,
        rngs=rngs,
    )
    if prune:
        for layer in range(LAYERS):
            nnx.update(getattr(ladder, f"block_{layer}"), pruned["layers"][layer])
    side = nnx.Dict(ladder=ladder, head=nnx.Linear(WIDTH, CLASSES, rngs=rngs))
    structure, params = nnx.split(side)
    return structure, nnx.to_pure_dict(params)


gated_graph, side = new_side(prune=True)
alone_graph, pruned_side = new_side(prune=True, merge="side")
print(f"{count(side):,} parameters in the side network and its classifier")

# %% [markdown]
# ## Three training steps, compiled
#
# Full fine-tuning; the ladder on top of the running backbone, with
# `ot.side_value_and_grad` and `ot.ladder`; and the ladder on taps from a cache. The
# compiler says what each needs: FLOPs, and temporary memory (activations kept for the
# backward pass, mostly).


# %%
def classify(head, top, mask):
    weights = mask[..., None].astype(top.dtype)
    mean = (top * weights).sum(axis=1) / weights.sum(axis=1)
    return mean @ head["kernel"] + head["bias"]


def climb(graph, side, taps, mask):
    model = nnx.merge(graph, side)
    top = model.ladder(taps, attention_bias(mask), deterministic=True)
    return classify(side["head"], top, mask)


def full_logits(params, batch):
    taps = taps_of(params["backbone"], batch)
    return classify(params["side"]["head"], taps[-1], batch["mask"])


def ladder_logits(params, batch):
    taps = taps_of(params["backbone"], batch)
    return climb(gated_graph, params["side"], taps, batch["mask"])


def cached_logits(params, batch):
    return climb(gated_graph, params["side"], batch["taps"], batch["mask"])


def side_only_logits(params, batch):
    return climb(alone_graph, params["side"], batch["taps"], batch["mask"])


def head_logits(params, batch):
    return classify(params["side"]["head"], batch["taps"][-1], batch["mask"])


def objective(logits):
    def loss(params, batch):
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch), batch["label"]
        )
        return losses.mean()

    return loss


def compiled(logits, tx, params, batch, side=None):
    """A compiled training step."""
    loss = objective(logits)
    differ = jax.value_and_grad(loss)
    if side is not None:
        differ = ot.side_value_and_grad(loss, side=side)

    def step(params, state, batch):
        value, grads = differ(params, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(params, tx.init(params), batch).compile()


STEPS = EPOCHS * TRAIN // BATCH
adamw = lambda peak: optax.adamw(
    optax.warmup_cosine_decay_schedule(peak / 10, peak, max(1, STEPS // 10), STEPS + 1)
)
# The new classifier takes larger steps than what is pretrained.
tuned = lambda peak: optax.chain(adamw(peak), ot.scale_by_path({"^side/head": 10.0}))
first = {name: x[:BATCH] for name, x in train.items()}
taps = jax.jit(taps_of)(backbone, first)
both = lambda side: jax.tree.map(jnp.array, {"backbone": backbone, "side": side})
alone = lambda side: jax.tree.map(jnp.array, {"side": side})
head_only = lambda side: {"side": {"head": jax.tree.map(jnp.array, side["head"])}}
with_taps = first | {"taps": taps}

methods = {
    "full fine-tuning": (
        full_logits,
        tuned(3e-4),
        both({"head": side["head"]}),
        first,
    ),
    "ladder": (
        ladder_logits,
        ot.ladder(tuned(3e-3), side="^side"),
        both(side),
        first,
        "^side",
    ),
    "ladder, cached taps": (cached_logits, tuned(3e-3), alone(side), with_taps),
    "side only, cached taps": (
        side_only_logits,
        tuned(3e-3),
        alone(pruned_side),
        with_taps,
    ),
    "classifier alone": (head_logits, adamw(3e-2), head_only(side), with_taps),
}
programs = {name: compiled(*how) for name, how in methods.items()}
costs = {}
for name, program in programs.items():
    memory = program.memory_analysis().temp_size_in_bytes
    costs[name] = program.cost_analysis()["flops"] / 1e9, memory / 2**20
whole = costs["full fine-tuning"]
print(f"{'a training step':23} GFLOP   MiB   of full fine-tuning")
for name, (flops, memory) in costs.items():
    parts = f"{flops / whole[0]:.2f}, {memory / whole[1]:.2f}"
    print(f"{name:23}{flops:6.2f}  {memory:5.1f}  {parts}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 2.8), sharey=True)
titles = ("Arithmetic (GFLOP a step)", "Temporary memory (MiB)")
for column, (ax, title) in enumerate(zip(axes, titles, strict=True)):
    values = [cost[column] for cost in costs.values()]
    bars = ax.barh(list(costs), values, color=f"C{column}")
    ax.bar_label(bars, fmt="%.3g", padding=3)
    ax.set_xlabel(title)
    ax.margins(x=0.15)
axes[0].invert_yaxis()
figure.tight_layout()

# %% [markdown]
# ## Taps, computed once
#
# The backbone does not change, so its taps are the same in every epoch. `nn.cache_taps`
# runs it once over the data; with a `folder` the cache is on disk, verified by
# checksums, and resumes after an interruption.

# %%
begin = time.perf_counter()
cache = ot.nn.cache_taps(taps_of, data, params=backbone, batch_size=BATCH)
spent = time.perf_counter() - begin
print(cache)
print(
    f"computed in {spent:.1f} s; {cache.nbytes / len(cache) / 1024:.0f} KiB an example"
)
direct = jax.tree.map(np.asarray, taps)
equal = [np.array_equal(a, b) for a, b in zip(cache[:BATCH], direct, strict=True)]
print("same bits as a direct call:", all(equal))

# %% [markdown]
# ## Accuracy against cost
#
# A few epochs for each, on the same batches; ladders run on cached taps. With the gated
# merge (`merge="gated"`) a ladder starts as the backbone itself, so that it begins
# where a classifier on frozen features does. With `merge="side"`, as in LST, the
# classifier sees the side network alone, and has to wait for it: there we compare the
# pruned copy with random blocks. Errors are the standard errors of so few test texts.


# %%
def batches(cached):
    rng = np.random.default_rng(2)
    for _ in range(EPOCHS):
        for rows in rng.permutation(TRAIN).reshape(-1, BATCH):
            batch = {name: x[rows] for name, x in train.items()}
            yield batch | {"taps": cache[rows]} if cached else batch


def accuracy(logits, params, cached):
    forward, right = jax.jit(logits), 0
    size = min(64, len(test["label"]))
    for place in range(0, len(test["label"]), size):
        rows = slice(place, place + size)
        batch = {name: x[rows] for name, x in test.items()}
        if cached:
            batch |= {"taps": cache[TRAIN + place : TRAIN + place + size]}
        right += int((forward(params, batch).argmax(axis=1) == batch["label"]).sum())
    return 100 * right / len(test["label"])


def fit(name, params, cached=True):
    logits, tx, *_ = methods[name]
    state, losses, begin = tx.init(params), [], time.perf_counter()
    for batch in batches(cached):
        params, state, loss = programs[name](params, state, batch)
        losses.append(float(loss))
    seconds = time.perf_counter() - begin
    return name, losses, accuracy(logits, params, cached), seconds


random_side = new_side(prune=False, merge="side")[1]
side_only = "side only, cached taps"
runs = {
    "full fine-tuning": fit(
        "full fine-tuning", both({"head": side["head"]}), cached=False
    ),
    "classifier alone": fit("classifier alone", head_only(side)),
    "ladder, gated": fit("ladder, cached taps", alone(side)),
    "side only, pruned copy": fit(side_only, alone(pruned_side)),
    "side only, random blocks": fit(side_only, alone(random_side)),
}


def error_of(right):
    return 100 * (right / 100 * (1 - right / 100) / len(test["label"])) ** 0.5


print(f"{STEPS} steps of {BATCH}{'':10}loss    test accuracy   training time")
for name, (_, losses, right, seconds) in runs.items():
    last = np.mean(losses[-max(1, STEPS // 6) :])
    scored = f"{right:.1f} ± {error_of(right):.1f} %"
    print(f"{name:24}{last:7.3f}  {scored:>15}  {seconds:11.1f} s")

# %%
WINDOW = max(1, STEPS // 8)
LOOK = ("-o", "-s", "--D", "-^", "-v")
figure, axes = plt.subplots(1, 2, figsize=(13, 4))
for look, (name, (program, losses, right, _)) in zip(LOOK, runs.items(), strict=True):
    smooth = np.convolve(losses, np.ones(WINDOW) / WINDOW, "valid")
    axes[0].plot(np.arange(len(smooth)) + WINDOW, smooth, look[:-1], label=name)
    memory, error = costs[program][1], error_of(right)
    axes[1].errorbar(memory, right, error, fmt=look[-1], capsize=4, label=name)
axes[0].set(xlabel="step", ylabel=f"loss (nats, mean of {WINDOW} steps)")
axes[0].set_ylim(0, None)
axes[1].set(xscale="log", xlabel="temporary memory of a training step (MiB)")
axes[1].set_ylabel("test accuracy (%)")
axes[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
figure.tight_layout()
