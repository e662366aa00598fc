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
# # Child-Tuning: gradient dropout and Fisher masks
#
# Child-Tuning fine-tunes a part of a network. F mode draws the part afresh at every
# step and knows no task: that is `gradient_dropout`. D mode fixes the part before
# training, as the entries with the largest Fisher information: that is
# `fisher_information`, `top_fraction_mask` and `child_tuning_d`.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import optaxtricks as ot
from benchmarks.finetune.checkpoint import open_checkpoint
from benchmarks.finetune.docstrings import docstring_task
from benchmarks.finetune.encoder import Classifier, EncoderConfig

SMALL = os.environ.get("OPTAXTRICKS_SMALL") == "1"

plt.style.use("petroff10")  # colours that differ for colour-blind readers too
plt.rcParams |= {"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}

# %% [markdown]
# ## Gradient dropout under SGD
#
# With a mask $M \sim \mathrm{Bernoulli}(p)$ the gradient becomes $\tilde g = gM/p$. If
# $g$ has mean $\mu$ and variance $\sigma^2$, the mean stays and the variance grows:
#
# $$
# \mathbb E\,\tilde g = \mu, \qquad
# \operatorname{Var} \tilde g = \sigma^2 + \frac{1-p}{p}\,(\mu^2 + \sigma^2).
# $$
#
# We drop entries of many draws with $\mu = 1$, $\sigma = 0.5$.

# %%
MU, SIGMA = 1.0, 0.5
RATES = np.array([0.1, 0.5, 1.0]) if SMALL else np.array([0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
DRAWS = 20_000 if SMALL else 1_000_000
gradients = MU + SIGMA * jax.random.normal(jax.random.key(0), (DRAWS,))


@jax.jit
def moments_under_sgd(keep_rate):
    tx = ot.gradient_dropout(keep_rate, key=1)
    dropped, _ = tx.update(gradients, tx.init(gradients))
    return dropped.mean(), dropped.var()


power = MU**2 + SIGMA**2
sgd = np.array([moments_under_sgd(p) for p in RATES])
sgd_theory = SIGMA**2 + (1 - RATES) / RATES * power
print("   p   mean   theory   variance   theory")
for p, (mean, variance), theory in zip(RATES, sgd, sgd_theory, strict=True):
    print(f"{p:.2f}  {mean:.3f}  {MU:7.3f}  {variance:9.3f}  {theory:7.3f}")

# %% [markdown]
# ## Gradient dropout under Adam
#
# Adam divides the mean of gradients by the root of the mean of their squares, and
# $\mathbb E\,\tilde g^2 = \mathbb E\,g^2 / p$. Once the second moment has settled, the
# update $u$ (per unit of learning rate) of independent gradients has
#
# $$
# \mathbb E\,u = \sqrt p\,\frac{\mu}{\sqrt{\mu^2 + \sigma^2}}, \qquad
# \operatorname{Var} u = \frac{1-\beta_1}{1+\beta_1}
# \left(1 - p\,\frac{\mu^2}{\mu^2 + \sigma^2}\right).
# $$
#
# So a smaller $p$ shrinks the drift by $\sqrt p$, as a smaller learning rate would. It
# does *not* shrink the noise, which a smaller learning rate would: the variance rises
# toward $(1-\beta_1)/(1+\beta_1)$, and the signal-to-noise ratio falls by more than
# $\sqrt p$.
#
# The formulas leave out that both moments see the same gradients, a correction of order
# $(1-\beta_2)/(1-\beta_1)$, here a per cent or so.

# %%
B1, B2 = 0.9, 0.999
ENTRIES, SETTLE, MEASURE = (100, 1500, 500) if SMALL else (1000, 4000, 1000)


@jax.jit
def moments_under_adam(keep_rate):
    tx = ot.child_tuning_f(optax.scale_by_adam(B1, B2), keep_rate, key=2)

    def step(state, number):
        key = jax.random.fold_in(jax.random.key(3), number)
        grads = MU + SIGMA * jax.random.normal(key, (ENTRIES,))
        updates, state = tx.update(grads, state)
        return state, (updates.sum(), jnp.square(updates).sum())

    state, _ = jax.lax.scan(step, tx.init(jnp.zeros(ENTRIES)), jnp.arange(SETTLE))
    steps = SETTLE + jnp.arange(MEASURE)
    _, (sums, squares) = jax.lax.scan(step, state, steps)
    mean, square = (x.sum() / (ENTRIES * MEASURE) for x in (sums, squares))
    return mean, square - mean**2


adam = np.array([moments_under_adam(p) for p in RATES])
noise = (1 - B1) / (1 + B1)
adam_mean = lambda p: np.sqrt(p) * MU / np.sqrt(power)
adam_variance = lambda p: noise * (1 - p * MU**2 / power)
print("   p   mean   theory   variance   theory")
for p, (mean, variance) in zip(RATES, adam, strict=True):
    print(
        f"{p:.2f}  {mean:.3f}  {adam_mean(p):7.3f}  "
        f"{variance:9.4f}  {adam_variance(p):7.4f}"
    )

# %%
fine = np.linspace(RATES[0], 1, 200)
figure, axes = plt.subplots(1, 3, figsize=(13, 3.8))
curves = (
    ("SGD: variance of the update", sgd[:, 1], SIGMA**2 + (1 - fine) / fine * power),
    ("Adam: mean of the update", adam[:, 0], adam_mean(fine)),
    ("Adam: variance of the update", adam[:, 1], adam_variance(fine)),
)
for ax, (title, measured, theory) in zip(axes, curves, strict=True):
    ax.plot(fine, theory, color="C0", label="theory")
    ax.plot(RATES, measured, "o", color="C1", label="measured")
    ax.set(title=title, xlabel="keep rate $p$", ylim=(0, None))
units = (r"(rate $\times$ gradient)$^2$", "rate", "rate$^2$")
for ax, unit in zip(axes, units, strict=True):
    ax.set_ylabel(f"in units of {unit}")
axes[2].axhline(noise, color="0.5", linestyle=":", label=r"$(1-\beta_1)/(1+\beta_1)$")
axes[2].set_ylim(0, 1.2 * noise)
axes[2].legend(loc="lower left")
for ax in axes[:2]:
    ax.legend()
figure.tight_layout()

# %% [markdown]
# ## Fisher masks of a real encoder
#
# The diagonal Fisher information scores every entry by the mean squared gradient of the
# log-likelihood,
#
# $$
# F_i = \frac1N \sum_{n=1}^N
# \left(\frac{\partial \log p(y_n \mid x_n)}{\partial\theta_i}\right)^2 ,
# $$
#
# over *examples* $n$. The published Child-Tuning code squares the gradient of a *batch*
# mean instead; in it, opposite gradients cancel. Which entries does either keep, in a
# pretrained MiniLM-L6 with a fresh classifier for the benchmark's task (which module
# does a docstring come from)? The small size takes a random encoder and random tokens.

# %%
CLASSES, EXAMPLES, TOKENS, KEEP = (3, 8, 8, 0.3) if SMALL else (8, 64, 32, 0.3)


def random_texts():
    config = EncoderConfig(
        "bert", 50, 16, 2, 2, 32, TOKENS, 2, "gelu", 1e-12, 0.1, pad_token_id=0
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 50, (EXAMPLES, TOKENS))
    labels = rng.integers(CLASSES, size=EXAMPLES)
    return config, None, ids, np.ones((EXAMPLES, TOKENS), bool), labels


def docstrings():
    checkpoint = open_checkpoint(None)
    rows, _ = docstring_task()
    names = sorted({row["label"] for row in rows})[:CLASSES]
    rows = [row for row in rows if row["label"] in names]
    chosen = np.random.default_rng(0).choice(len(rows), EXAMPLES, replace=False)
    rows = [rows[i] for i in chosen]
    checkpoint.tokenizer.enable_truncation(TOKENS)
    checkpoint.tokenizer.enable_padding(length=TOKENS)
    found = checkpoint.tokenizer.encode_batch([row["text"] for row in rows])
    ids = np.array([text.ids for text in found])
    mask = np.array([text.attention_mask for text in found], bool)
    labels = np.array([names.index(row["label"]) for row in rows])
    return checkpoint.config, checkpoint.encoder, ids, mask, labels


config, weights, ids, mask, labels = random_texts() if SMALL else docstrings()
model = Classifier(config, CLASSES, rngs=nnx.Rngs(0))
if weights is not None:
    nnx.update(model.encoder, weights)
graph, params = nnx.split(model)
params = nnx.to_pure_dict(params)
data = {"ids": ids, "mask": mask, "label": labels}


def log_likelihood(params, example):
    ids, mask = example["ids"][None], example["mask"][None]
    model = nnx.merge(graph, params)
    logits = model(ids, jnp.zeros_like(ids), mask, deterministic=True)
    return jax.nn.log_softmax(logits[0])[example["label"]]


def batches(size):
    for first in range(0, EXAMPLES, size):
        yield jax.tree.map(lambda x, rows=slice(first, first + size): x[rows], data)


body = "^encoder/layers"
SIZES = (4,) if SMALL else (8, 32)
masks = {}
for size in (1, *SIZES):
    per = "example" if size == 1 else "batch"
    stream = data if size == 1 else list(batches(size))
    fisher = ot.fisher_information(
        log_likelihood, params, stream, per=per, where=body, microbatch_size=1
    )
    masks[size] = ot.top_fraction_mask(fisher, KEEP, where=body)
kept = sum(int(m.sum()) for m in jax.tree.leaves(masks[1]) if m is not True)
total = sum(m.size for m in jax.tree.leaves(masks[1]) if m is not True)
print(f"kept {kept:,} of {total:,} entries of the layers: {kept / total:.4f}")

# %% [markdown]
# One global threshold ranks all entries of the layers together, so each kind of matrix
# in each layer gets the share it earns. (`ot.plots.kept_fraction` draws a bar for each
# leaf; with this many a picture by layer and kind is easier to read.)

# %%
KINDS = ("query", "key", "value", "output", "up", "down")


def by_layer(mask):
    """Percentages kept of the kernels, an array of layers by kinds."""
    found = np.zeros((len(mask["encoder"]["layers"]), len(KINDS)))
    for row, layer in mask["encoder"]["layers"].items():
        parts = {**layer["attention"], "up": layer["up"], "down": layer["down"]}
        found[row] = [100 * np.mean(parts[kind]["kernel"]) for kind in KINDS]
    return found


size = (4.4 * len(masks), 4.2)
figure, axes = plt.subplots(1, len(masks), figsize=size, layout="constrained")
for ax, (size, found) in zip(axes, masks.items(), strict=True):
    shares = by_layer(found)
    image = ax.imshow(shares, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        colour = "black" if share > 55 else "white"
        ax.text(column, row, f"{share:.0f}", color=colour, ha="center", va="center")
    ax.set_xticks(range(len(KINDS)), KINDS, rotation=30)
    ax.set_yticks(range(len(shares)))
    ax.set(xlabel="kernel", ylabel="layer", title=f"squared means of {size} examples")
    ax.grid(False)
axes[0].set_title("squares of examples")
figure.colorbar(image, ax=axes, label="entries kept (%)")
plt.show()

# %% [markdown]
# How far do the masks agree? Two masks that keep a fraction $p$ each share a fraction
# $p$ of their entries by chance, and all of them if they are the same.


# %%
def shared(one, other):
    """Of the entries that one mask keeps, the fraction that the other keeps too."""
    one, other = (by_leaf(mask) for mask in (one, other))
    both = sum(int((a & b).sum()) for a, b in zip(one, other, strict=True))
    return both / sum(int(a.sum()) for a in one)


def by_leaf(mask):
    return [m for m in jax.tree.leaves(mask) if m is not True]


print(f"by chance:              {KEEP:.2f} of the kept entries are shared")
for size in SIZES:
    print(f"examples, batches of {size:2}: {shared(masks[1], masks[size]):.2f}")

# %% [markdown]
# ## Does it help?
#
# A task small enough for many seeds: an MLP learns to tell even from odd in mirrored
# handwritten digits (scikit-learn's), gets a fresh head, and is fine-tuned to tell ten
# digits apart from a few images that are not mirrored. We compare full fine-tuning, F
# mode, D mode with the highest Fisher information, and two controls of the same size: a
# random part, and the part of lowest Fisher information. Which of them is best depends
# on data and budget; read the errors beside the means.

# %%
SEEDS, SHOTS, STEPS = (2, 20, 20) if SMALL else (20, 50, 200)
WIDTH, PART = 128, 0.2
images, digit = load_digits(return_X_y=True)
images = jnp.asarray(images / 16, jnp.float32)
digit = jnp.asarray(digit)
mirrored = images.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64)


def logits(params, x):
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"])
    return x @ params["head"]["w"] + params["head"]["b"]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def dense(key, inputs, outputs):
    w = jax.random.normal(key, (inputs, outputs)) * (2 / inputs) ** 0.5
    return {"w": w, "b": jnp.zeros(outputs)}


@jax.jit
def pretrained(key):
    """Trained to tell even from odd in mirrored digits, with a fresh head."""
    keys = jax.random.split(key, 4)
    params = {
        "first": dense(keys[0], 64, WIDTH),
        "second": dense(keys[1], WIDTH, WIDTH),
        "head": dense(keys[2], WIDTH, 10),
    }
    return trained(optax.adam(3e-3), params, mirrored, digit % 2, 5 * STEPS) | {
        "head": dense(keys[3], WIDTH, 10)
    }


def trained(tx, params, x, y, steps):
    def step(carry, _):
        params, state = carry
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=steps)
    return params


@jax.jit
def tuned(params, mask, keep_rate, rows):
    """Accuracy on the images that were not trained on."""
    adam = ot.child_tuning_f(optax.adam(1e-3), keep_rate, key=4)
    tx = ot.child_tuning_d(adam, mask)
    params = trained(tx, params, images[rows], digit[rows], STEPS)
    right = jnp.argmax(logits(params, images), axis=1) == digit
    test = jnp.ones(len(digit), bool).at[rows].set(False)
    return 100 * jnp.mean(right, where=test)


def log_p(params, example):
    return jax.nn.log_softmax(logits(params, example["x"]))[example["y"]]


def masks_of(params, rows, seed):
    """The parts to train; heads are trained in all of them."""
    shots = {"x": images[rows], "y": digit[rows]}
    fisher = ot.fisher_information(log_p, params, shots)
    rng = np.random.default_rng(seed)
    lowest = jax.tree.map(lambda f: 1 / (f + 1e-12), fisher)
    chance = jax.tree.map(lambda f: rng.random(f.shape, np.float32), fisher)
    parts = {"highest Fisher": fisher, "random": chance, "lowest Fisher": lowest}
    everything = jax.tree.map(lambda f: jnp.ones(f.shape, bool), fisher)
    body = "^(first|second)"
    cut = lambda scores: ot.top_fraction_mask(scores, PART, where=body)
    found = {name: everything | part(cut(scores)) for name, scores in parts.items()}
    return {"everything": everything, **found}


def part(mask):
    return {name: mask[name] for name in ("first", "second")}


runs = {}
for seed in range(SEEDS):
    start = pretrained(jax.random.key(seed))
    rows = np.random.default_rng(seed).choice(len(digit), SHOTS, replace=False)
    for name, chosen in masks_of(start, rows, seed).items():
        runs.setdefault(name, []).append(float(tuned(start, chosen, 1.0, rows)))
        if name == "everything":
            dropped = float(tuned(start, chosen, 0.3, rows))
            runs.setdefault("F mode, $p = 0.3$", []).append(dropped)

means = {name: np.mean(values) for name, values in runs.items()}
errors = {name: np.std(v, ddof=1) / len(v) ** 0.5 for name, v in runs.items()}
for name in runs:
    print(f"{name:20} {means[name]:5.1f} ± {errors[name]:.1f} %")

# %%
figure, ax = plt.subplots(figsize=(7.5, 3.2))
places = np.arange(len(runs))
for place, values in zip(places, runs.values(), strict=True):
    jitter = np.linspace(-0.2, 0.2, len(values))
    ax.plot(values, place + jitter, ".", color="0.6", markersize=5)
ax.errorbar(
    list(means.values()),
    places,
    xerr=list(errors.values()),
    fmt="o",
    color="C0",
    capsize=4,
    label="mean ± standard error",
)
ax.set_yticks(places, runs)
ax.invert_yaxis()
ax.set(xlabel="accuracy on unseen digits (%); a grey dot is a seed")
ax.legend()
figure.tight_layout()
