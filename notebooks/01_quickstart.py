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
# # Quickstart
#
# Every trick is an Optax transformation, so it goes wherever `optax.adamw` goes: into
# `optax.chain`, into `nnx.Optimizer`, into a Linen `TrainState`. Here a small text
# classifier is trained in both loops, and we look at what the optimizer holds and does.
#
# `OPTAXTRICKS_SMALL=1` in the environment makes every notebook here a smoke test.

# %%
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

import optaxtricks as ot

SMALL = os.environ.get("OPTAXTRICKS_SMALL") == "1"

plt.style.use("petroff10")  # colours that differ for colour-blind readers too
plt.rcParams |= {"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}

# %% [markdown]
# ## A task
#
# Texts of 12 words on one of four topics. Word frequencies follow Zipf's law, $p(r)
# \propto 1/r$, and every topic ranks the words in an order of its own.

# %%
WORDS, TOPICS, LENGTH, BATCH = 400, 4, 12, 32
TEXTS, STEPS = (256, 12) if SMALL else (4096, 300)

rng = np.random.default_rng(0)
zipf = 1 / np.arange(1, WORDS + 1)
orders = np.stack([rng.permutation(WORDS) for _ in range(TOPICS)])
topics = rng.integers(TOPICS, size=TEXTS)
ranks = rng.choice(WORDS, p=zipf / zipf.sum(), size=(TEXTS, LENGTH))
texts = orders[topics[:, None], ranks]


def batch(number):
    rows = np.arange(number * BATCH, (number + 1) * BATCH) % TEXTS
    return jnp.asarray(texts[rows]), jnp.asarray(topics[rows])


def cross_entropy(logits, topics):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, topics)
    return losses.mean()


# %% [markdown]
# ## NNX: a trick in a chain, watched from both sides
#
# `gradient_dropout` keeps each gradient entry with probability $p$ and divides it by
# $p$. Placed before AdamW it is Child-Tuning-F. A keep rate, like every rate, may be a
# schedule: here it rises from 0.3 to 1. `monitor_groups` changes nothing; first in the
# chain it sees gradients, last it sees the updates.


# %%
class Classifier(nnx.Module):
    def __init__(self, rngs):
        self.words = nnx.Embed(WORDS, 16, rngs=rngs)
        self.hidden = nnx.Linear(16, 32, rngs=rngs)
        self.head = nnx.Linear(32, TOPICS, rngs=rngs)

    def __call__(self, ids):
        return self.head(nnx.relu(self.hidden(self.words(ids).mean(axis=1))))


groups = ot.label_by_path({"^words": "table", "kernel$": "kernels"}, default="biases")
keep_rate = optax.linear_schedule(0.3, 1.0, STEPS)
rate = optax.warmup_cosine_decay_schedule(0.0, 1e-2, STEPS // 10, STEPS)
tx = optax.chain(
    ot.monitor_groups(groups, name="gradients"),
    ot.gradient_dropout(keep_rate, key=0),
    optax.adamw(rate, weight_decay=0.01),
    ot.monitor_groups(groups, name="updates"),
)

# %% [markdown]
# `ot.summary` traces the optimizer and computes nothing: what is trained, and what it
# costs. AdamW has two moments of 4 bytes a parameter; dropout adds two words a leaf and
# a step count, among `other`.

# %%
model = Classifier(nnx.Rngs(0))
print(ot.summary(tx, nnx.state(model, nnx.Param)))

# %% [markdown]
# `ot.metrics` finds every monitor in an optimizer state, inside `jit` as well, and
# gives one flat dict of scalars for any logger.

# %%
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def step(model, optimizer, ids, topics):
    loss_fn = lambda model: cross_entropy(model(ids), topics)
    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss, ot.metrics(optimizer.opt_state)


losses, history = [], []
for number in range(STEPS):
    loss, readings = step(model, optimizer, *batch(number))
    losses.append(float(loss))
    history.append(jax.device_get(readings))

for name, value in sorted(history[-1].items()):
    if name.endswith(("rms", "active_row_fraction")):
        print(f"{name:38} {value:.3g}")

# %% [markdown]
# The right panel shows what only a pair of monitors can: the rows of words that do not
# occur in a batch have no gradient, yet Adam's moments and weight decay move them too.
# (Notebook 03 is about what a sign method makes of this, and about `lazy_rows`.)

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
watched = ("updates/table", "updates/kernels", "updates/biases")
select = lambda names, reading: {
    name: [readings[f"{name}/{reading}"] for readings in history] for name in names
}
# The first step has a rate of 0, which a logarithmic axis cannot show.
later = {name: values[1:] for name, values in select(watched, "rms").items()}
ot.plots.update_rms(later, steps=range(1, STEPS), ax=axes[0])
sides = ("gradients/table", "updates/table")
ot.plots.active_rows(select(sides, "active_row_fraction"), ax=axes[1])
axes[0].set_title("Size of the updates")
axes[1].set_title("Rows of the word table that move")
figure.tight_layout()

# %% [markdown]
# ## Nothing is hidden in the random numbers
#
# A mask is a pure function of key, step, leaf path and entry index, so
# `ot.dropout_mask` can say afterwards which entries a step has kept; the state holds no
# key to lose track of.

# %%
params = {"hidden": jnp.ones((4, 6)), "head": jnp.ones(5)}
dropout = ot.gradient_dropout(0.5, key=7)
state = dropout.init(params)
for number in range(3):
    updates, state = dropout.update(params, state)
    mask = ot.dropout_mask(params, 0.5, key=7, step=number)
    same = jax.tree.map(lambda u, m: bool(((u != 0) == m).all()), updates, mask)
    print(f"step {number}: kept entries are those of dropout_mask: {same}")
print("state:", jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", state))

# %% [markdown]
# ## Linen: a `TrainState`, and a hyperparameter that lives in the state
#
# `optax.inject_hyperparams` puts numbers into the state, where a schedule moves them
# and a checkpoint keeps them. `ot.metrics` reads them too.


# %%
class LinenClassifier(nn.Module):
    @nn.compact
    def __call__(self, ids):
        words = nn.Embed(WORDS, 16, name="words")(ids).mean(axis=1)
        hidden = nn.relu(nn.Dense(32, name="hidden")(words))
        return nn.Dense(TOPICS, name="head")(hidden)


lion = optax.inject_hyperparams(ot.lion, static_args=("cautious",))
tx = optax.chain(
    lion(optax.cosine_decay_schedule(3e-3, STEPS), weight_decay=0.03, cautious=True),
    ot.monitor_groups(groups),
)
linen = LinenClassifier()
train = TrainState.create(
    apply_fn=linen.apply,
    params=linen.init(jax.random.key(0), jnp.asarray(texts[:1]))["params"],
    tx=tx,
)


@jax.jit
def linen_step(train, ids, topics):
    loss_fn = lambda p: cross_entropy(train.apply_fn({"params": p}, ids), topics)
    loss, grads = jax.value_and_grad(loss_fn)(train.params)
    train = train.apply_gradients(grads=grads)
    return train, loss, ot.metrics(train.opt_state)


linen_losses, rates = [], []
for number in range(STEPS):
    train, loss, readings = linen_step(train, *batch(number))
    linen_losses.append(float(loss))
    rates.append(float(readings["hyperparams/learning_rate"]))

print(f"rate in the state, first and last step: {rates[0]:.2g}, {rates[-1]:.2g}")
print(ot.summary(tx, train.params))

# %% [markdown]
# Leaves have the same path in NNX and Linen, so the labels above served both. Lion
# keeps one momentum, half of Adam's state.

# %%
window = max(1, STEPS // 15)
smooth = lambda values: np.convolve(values, np.ones(window) / window, "valid")
figure, axes = plt.subplots(1, 2, figsize=(11, 3.8))
axes[0].plot(smooth(losses), label="AdamW behind gradient dropout (NNX)")
axes[0].plot(smooth(linen_losses), "--", label="cautious Lion (Linen)")
axes[0].axhline(np.log(TOPICS), color="0.5", linewidth=1, label="guessing")
axes[0].set(xlabel="step", ylabel=f"loss (nats, mean of {window} steps)")
axes[0].set_ylim(0, None)
axes[0].legend()
axes[1].plot(rates, label="Lion's learning rate, from the state")
axes[1].set(xlabel="step", ylabel="learning rate", ylim=(0, None))
axes[1].legend()
figure.tight_layout()
