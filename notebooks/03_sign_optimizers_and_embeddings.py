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
# # Sign optimizers and embeddings
#
# Lion and Tiger move every entry by the sign of its momentum. An embedding row that is
# not looked up has no gradient, but its momentum fades slowly and its *sign* does not
# fade at all: the row walks on, until weight decay stops it at $\pm 1/\lambda$.

# %%
import os
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optaxtricks as ot

SMALL = os.environ.get("OPTAXTRICKS_SMALL") == "1"

plt.style.use("petroff10")  # colours that differ for colour-blind readers too
plt.rcParams |= {"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}

# %% [markdown]
# ## The walk in closed form
#
# With a sign $s$ that never changes, rate $\eta$ and decoupled decay $\lambda$, Lion is
# $\theta \leftarrow \theta - \eta(s + \lambda\theta)$, so
#
# $$
# \theta_t = -\frac s\lambda + \left(\theta_0 + \frac s\lambda\right)(1-\eta\lambda)^t
# \;\longrightarrow\; -\frac s\lambda .
# $$
#
# Tiger scales the step by the root mean square of the row, $a$. Once all of the row is
# stuck, $\dot a = \eta a (1 - \lambda a)$, which is logistic growth:
#
# $$
# a(t) \approx \frac1{\lambda + (1/a_0 - \lambda)\,e^{-\eta t}} .
# $$
#
# Growth is exponential at first, so that scaling by row speeds the walk up.

# %%
RATE, DECAY, START = 0.005, 0.5, 0.01
STEPS = 300 if SMALL else 3000


def walk(tx):
    """A row that starts at -START, under a gradient of +1 for ever."""

    def step(carry, _):
        table, state = carry
        updates, state = tx.update({"table": jnp.ones((1, 4))}, state, table)
        table = optax.apply_updates(table, updates)
        return (table, state), -table["table"][0, 0]

    table = {"table": jnp.full((1, 4), -START)}
    return jax.lax.scan(step, (table, tx.init(table)), length=STEPS)[1]


by_row = {"embeddings": "table", "rms_floor": 0.0}
walks = {
    "Lion": walk(ot.lion(RATE, weight_decay=DECAY)),
    "Tiger, scaled by row": walk(ot.tiger(RATE, weight_decay=DECAY, **by_row)),
}
t = np.arange(1, STEPS + 1)
theory = {
    "Lion": 1 / DECAY + (START - 1 / DECAY) * (1 - RATE * DECAY) ** t,
    "Tiger, scaled by row": 1 / (DECAY + (1 / START - DECAY) * np.exp(-RATE * t)),
}

figure, ax = plt.subplots(figsize=(7, 3.8))
for index, (name, values) in enumerate(walks.items()):
    ax.plot(t, values, color=f"C{index}", label=name)
    every = slice(STEPS // 15, None, STEPS // 15)
    ax.plot(t[every], theory[name][every], "o", color=f"C{index}", markersize=5)
    error = np.abs(values / theory[name] - 1).max()
    print(f"{name}: largest relative difference to the closed form {error:.1e}")
ax.axhline(1 / DECAY, color="0.4", linestyle=":", label=r"$1/\lambda$")
ax.set(xlabel="step", ylabel="|entry|", title="A stuck row (dots: closed form)")
ax.legend()
figure.tight_layout()

# %% [markdown]
# ## How long does a sign survive?
#
# After one gradient the momentum decays as $m_t = (1-\beta_2)\,g\,\beta_2^t$. Its sign
# is gone only when $m$ is rounded to zero. Where the hardware flushes numbers below
# $2^{-126}$ to zero, as XLA does on CPU, that takes $\log(m_0 / 2^{-126}) /
# \log(1/\beta_2)$ steps; with gradual underflow, $m$ gets stuck at some tiny number
# instead, for ever. `dead_zone` sets a threshold by choice.

# %%
LIMIT = 1_000 if SMALL else 10_000


def survival(dead_zone):
    """Updates that are not zero, after one gradient of 0.01."""
    tx = ot.scale_by_lion(dead_zone=dead_zone)
    _, state = tx.update(jnp.full(1, 0.01), tx.init(jnp.zeros(1)))

    def step(state, _):
        updates, state = tx.update(jnp.zeros(1), state)
        return state, updates[0] != 0

    return int(jax.lax.scan(step, state, length=LIMIT)[1].sum())


first = 0.01 * 0.01
for dead_zone in (0.0, 1e-7, 1e-5):
    least = max(dead_zone, 2.0**-126) / (0.9 if dead_zone else 1.0)
    expected = min(LIMIT, np.log(first / least) / np.log(1 / 0.99))
    print(
        f"dead zone {dead_zone:g}: {survival(dead_zone)} steps, theory {expected:.0f}"
    )

# %% [markdown]
# ## A small problem with Zipf's law in it
#
# Row $r$ of an embedding table, times a small matrix, is to match a fixed target of its
# own. Rows are looked up with $p(r) \propto 1/r$: the last ones hardly ever. Decay is
# large, so that the bound is near enough to be reached in a short run.

# %%
ROWS, WIDTH, BATCH = (200, 4, 16) if SMALL else (3000, 16, 32)
STEPS, RATE, DECAY = (60, 0.02, 1.0) if SMALL else (2500, 2e-3, 0.5)

rng = np.random.default_rng(0)
frequency = 1 / np.arange(1, ROWS + 1)
frequency /= frequency.sum()
targets = jnp.asarray(0.3 * rng.standard_normal((ROWS, WIDTH)), jnp.float32)
ids = jnp.asarray(rng.choice(ROWS, p=frequency, size=(STEPS, BATCH)))
rows = 0.02 * rng.standard_normal((ROWS, WIDTH))
params = {"table": jnp.asarray(rows, jnp.float32), "matrix": jnp.eye(WIDTH)}


def loss_fn(params, ids):
    return jnp.square(params["table"][ids] @ params["matrix"] - targets[ids]).mean()


@jax.jit
def error_by_row(params):
    return jnp.square(params["table"] @ params["matrix"] - targets).mean(axis=1)


lion = lambda **options: ot.lion(RATE, weight_decay=DECAY, **options)
tiger = ot.tiger(10 * RATE, weight_decay=DECAY, embeddings="table", rms_floor=1e-2)
optimizers = {
    "AdamW": optax.adamw(RATE, weight_decay=DECAY),
    "Lion": lion(),
    "Tiger by row": tiger,
    "Lion, lazy rows": ot.lazy_rows(lion(), tables="table"),
    "Tiger, lazy rows": ot.lazy_rows(tiger, tables="table"),
    "Lion, cautious": lion(cautious=True),
    "Lion, dead zone": lion(dead_zone=1e-4),
    "Adam on the table": ot.mixed_sign(
        RATE, embeddings="table", weight_decay=DECAY, adam_learning_rate=RATE
    ),
}


def train(tx):
    """The parameters, and the health of the table over the steps."""

    def step(carry, ids):
        params, state = carry
        grads = jax.grad(loss_fn)(params, ids)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), ot.embedding_health(params["table"], DECAY)

    run = jax.jit(lambda params: jax.lax.scan(step, (params, tx.init(params)), ids))
    (after, _), health = run(params)
    return after, jax.device_get(health)


trained = {name: train(tx) for name, tx in optimizers.items()}

# %% [markdown]
# A row counts as stuck if most of its entries lie beyond half the bound. The cures
# differ in what they need: `lazy_rows` holds rows that were not looked up where they
# are (decay included); `cautious` drops updates that the current gradient does not
# agree with, and a gradient of zero agrees with nothing; `dead_zone` forgets a momentum
# once it is small; `mixed_sign` has Adam on the table, whose steps fade with the
# momentum. A cautious or lazy method also moves the table less, so its rate is not
# tuned by this comparison: look at the drift, not at the last digit of the error.

# %%
print(f"{'':20}largest x decay  stuck rows   error, weighted by frequency")
for name, (after, health) in trained.items():
    largest, stuck = health["max_times_decay"][-1], health["stuck_rows"][-1]
    error = float(error_by_row(after) @ frequency)
    print(f"{name:20}{largest:15.2f}  {100 * stuck:8.1f} %  {error:12.4f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
for ax, name in zip(axes, ("Lion", "Lion, lazy rows"), strict=True):
    table = trained[name][0]["table"]
    ot.plots.embedding_drift(table, DECAY, ax=ax)
    ax.set(title=name, ylim=(0, 1.1))
axes[1].set_ylabel("")
figure.tight_layout()

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 4))
for index, (name, (_, health)) in enumerate(trained.items()):
    look = {"color": f"C{index}", "label": name}
    look["linestyle"] = "-" if index < 3 else "--"
    axes[0].plot(health["max_times_decay"], **look)
    axes[1].plot(100 * health["stuck_rows"], **look)
axes[0].axhline(1, color="0.4", linestyle=":")
axes[0].set_ylabel("weight decay x largest |entry|")
axes[0].set_title("The largest entry, in units of the bound")
axes[1].set(ylabel="stuck rows (%)", ylim=(-2, 102))
axes[1].set_title("Rows with most entries beyond half the bound")
axes[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1))
for ax in axes:
    ax.set_xlabel("step")
figure.tight_layout()

# %% [markdown]
# ## Rows that rest can cost nothing
#
# Given the gradient as a `RowSparse`, `lazy_rows(..., moments="freeze")` gathers the
# rows that were looked up, runs the optimizer on them and puts them back. Time then
# follows the number of look-ups, not the size of the table. Buffers are donated on both
# sides.

# %%
LOOKUPS, SIDE = (16, 8) if SMALL else (1024, 64)
SIZES = (64, 128) if SMALL else (2**13, 2**15, 2**17, 2**18)
REPEATS = 3 if SMALL else 15


def seconds(tx, gradient, size):
    """The shortest time of a compiled step of one table: others may be at work."""
    table = {"table": jnp.full((size, SIDE), 0.1)}
    state = tx.init(table)
    ids = jnp.asarray(rng.integers(size, size=LOOKUPS))
    rows = jnp.asarray(rng.standard_normal((LOOKUPS, SIDE)), jnp.float32)

    def step(table, state, ids, rows):
        grads = {"table": gradient(ids, rows, size)}
        updates, state = tx.update(grads, state, table)
        return optax.apply_updates(table, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    compiled = jitted.lower(table, state, ids, rows).compile()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        table, state = jax.block_until_ready(compiled(table, state, ids, rows))
        times.append(time.perf_counter() - begin)
    return min(times)


adam = optax.adam(1e-3)
lazy = ot.lazy_rows(adam, tables="table", moments="freeze")
scattered = lambda ids, rows, size: jnp.zeros((size, SIDE)).at[ids].add(rows)
sides = {
    "dense Adam": (adam, scattered),
    "lazy rows, dense gradient": (lazy, scattered),
    "lazy rows, RowSparse": (lazy, ot.RowSparse.from_lookup),
}
times = {name: [seconds(*side, size) for size in SIZES] for name, side in sides.items()}
ratio = times["dense Adam"][-1] / times["lazy rows, RowSparse"][-1]
print(f"dense Adam / RowSparse at {SIZES[-1]:,} rows: {ratio:.0f}")

figure, ax = plt.subplots(figsize=(7, 3.8))
for name, values in times.items():
    ax.loglog(SIZES, 1e3 * np.array(values), "o-", label=name)
ax.set(xlabel="rows of the table", ylabel="time of a step (ms)")
ax.set_title(f"{LOOKUPS} look-ups of width {SIDE}")
ax.legend()
figure.tight_layout()
