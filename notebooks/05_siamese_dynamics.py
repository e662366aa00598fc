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
# # Siamese dynamics: two speeds against collapse
#
# SimSiam and BYOL learn by predicting one view of an image from another. A constant
# representation would be a perfect answer, yet training does not find it. A system of
# two numbers shows why (after Su, kexue.fm archive 7980), and a small SimSiam on
# handwritten digits shows the same on a network.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optaxtricks as ot
from benchmarks.siamese import model
from benchmarks.siamese.digits import read_digits, view

SMALL = os.environ.get("OPTAXTRICKS_SMALL") == "1"

plt.style.use("petroff10")  # colours that differ for colour-blind readers too
plt.rcParams |= {"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}

# %% [markdown]
# ## Two numbers
#
# An encoder $\theta$, a predictor $\varphi$, and the loss $\ell =
# \tfrac12(\varphi\theta - \theta)^2$. The predictor runs $\kappa$ times as fast.
# $\theta = 0$ is collapse, $\varphi = 1$ is success. With $u = 1 - \varphi$, gradient
# flow conserves a quantity, and so tells the end from the start:
#
# $$
# \begin{aligned}
# \text{stop-gradient on the target:} \quad & \dot\theta = \varphi u\,\theta,\;
# \dot\varphi = \kappa\,u\,\theta^2, \quad \theta^2 - \varphi^2/\kappa
# \text{ conserved,} \\
# \text{no stop-gradient:} \quad & \dot\theta = -u^2\,\theta,\;
# \dot\varphi = \kappa\,u\,\theta^2, \quad \theta^2 - u^2/\kappa \text{ conserved.}
# \end{aligned}
# $$
#
# From $\theta_0 > 0$ and $0 < \varphi_0 \le 1$ the first system always ends at
# $\varphi = 1$, with $\theta_\infty^2 = \theta_0^2 + (1 - \varphi_0^2)/\kappa$; only a
# predictor that starts too large can collapse it. The second collapses if
# $\theta_0^2 < u_0^2/\kappa$: a fast enough predictor saves even that one.
#
# The speed of the predictor is `ot.scale_by_path({"^phi": kappa})` before plain SGD.

# %%
RATE, STEPS = 0.1, (300 if SMALL else 6000)


def path(start, kappa, stop, rate, steps):
    """All points from one start; `phi` and `theta` of shape (steps + 1,)."""
    tx = optax.chain(ot.scale_by_path({"^phi": kappa}), optax.sgd(rate))

    def loss(point):
        theta = point["theta"]
        target = jax.lax.stop_gradient(theta) if stop else theta
        return 0.5 * (point["phi"] * theta - target) ** 2

    def step(carry, _):
        point, state = carry
        updates, state = tx.update(jax.grad(loss)(point), state)
        return (optax.apply_updates(point, updates), state), point

    (last, _), points = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    return jax.tree.map(lambda a, b: jnp.append(a, b), points, last)


def paths(starts, kappa, *, stop, rate=RATE, steps=STEPS):
    one = lambda start: path(start, kappa, stop, rate, steps)
    return jax.jit(jax.vmap(one))(starts)


def conserved(point, kappa, *, stop):
    phi, theta = point["phi"], point["theta"]
    return theta**2 - (phi if stop else 1 - phi) ** 2 / kappa


# %% [markdown]
# `ot.two_timescale` says the same with two rates in place of a factor:

# %%
start = {"phi": jnp.array(0.6), "theta": jnp.array(0.1)}
kappa = 4.0
by_factor = optax.chain(ot.scale_by_path({"^phi": kappa}), optax.sgd(RATE))
by_rates = ot.two_timescale(
    optax.identity(), RATE, fast="^phi", fast_learning_rate=kappa * RATE
)
grads = {"phi": jnp.array(-0.004), "theta": jnp.array(-0.024)}
for tx in (by_factor, by_rates):
    updates, _ = tx.update(grads, tx.init(start))
    print({name: f"{float(u):.6f}" for name, u in updates.items()})

# %% [markdown]
# ## Phase portraits
#
# Paths of the optimizer (lines, from the open to the filled dots) over level lines of
# the conserved quantity (grey). The orange path starts at $\varphi_0 = 0.6$,
# $\theta_0 = 0.1$.

# %%
KAPPAS = (1.0, 32.0) if SMALL else (1.0, 4.0, 32.0)
phis, thetas = np.meshgrid([0.05, 0.35, 0.6, 1.35], [0.1, 0.35, 0.7])
grid = {
    "phi": jnp.asarray(phis.ravel(), jnp.float32),
    "theta": jnp.asarray(thetas.ravel(), jnp.float32),
}
special = int(np.flatnonzero((phis.ravel() == 0.6) & (thetas.ravel() == 0.1))[0])
plane = dict(zip(("phi", "theta"), np.mgrid[-0.1:1.5:200j, 0:1.3:200j], strict=True))

figure, axes = plt.subplots(
    2, len(KAPPAS), figsize=(4.2 * len(KAPPAS), 7.2), sharex=True, sharey=True
)
for row, stop in enumerate((True, False)):
    for ax, kappa in zip(axes[row], KAPPAS, strict=True):
        # A fast predictor wants a smaller rate, or it overshoots.
        rate = RATE / max(1.0, kappa / 4)
        found = paths(grid, kappa, stop=stop, rate=rate)
        levels = conserved(plane, kappa, stop=stop)
        ax.contour(*plane.values(), levels, 14, colors="0.8", linewidths=0.7)
        for index, (phi, theta) in enumerate(
            zip(found["phi"], found["theta"], strict=True)
        ):
            colour = "C1" if index == special else "C0"
            ax.plot(phi, theta, color=colour, zorder=3 if index == special else 2)
            ax.plot(phi[0], theta[0], "o", color=colour, mfc="white", zorder=4)
            ax.plot(phi[-1], theta[-1], "o", color=colour, zorder=5)
        name = "stop-gradient" if stop else "no stop-gradient"
        ax.set_title(rf"{name}, $\kappa = {kappa:g}$")
        ax.axvline(1, color="C4", linestyle="--", linewidth=1)
        ax.axhline(0, color="C2", linestyle="--", linewidth=1)
        ax.set(xlim=(-0.1, 1.5), ylim=(-0.05, 1.3))
for ax in axes[1]:
    ax.set_xlabel(r"predictor $\varphi$ (dashed: success)")
for ax in axes[:, 0]:
    ax.set_ylabel(r"encoder $\theta$ (dashed: collapse)")
figure.tight_layout()

# %% [markdown]
# ## Where it ends
#
# The same start for many speeds: measured (long runs of the optimizer) against the
# closed form. Without stop-gradient the line of collapse is
# $\kappa = u_0^2/\theta_0^2 = 16$; next to it everything is slow.

# %%
SPEEDS = np.geomspace(1, 128, 4 if SMALL else 15)
LONG = 1_000 if SMALL else 40_000


@jax.jit
def ends(speeds):
    last = lambda kappa, stop: jax.tree.map(
        lambda x: x[-1], path(start, kappa, stop, RATE, LONG)
    )
    return [jax.vmap(lambda k, s=s: last(k, s)["theta"])(speeds) for s in (True, False)]


measured = ends(jnp.asarray(SPEEDS, jnp.float32))
phi0, theta0 = 0.6, 0.1
fine = np.geomspace(1, 128, 400)
closed = {
    "stop-gradient": np.sqrt(theta0**2 + (1 - phi0**2) / fine),
    "no stop-gradient": np.sqrt(np.maximum(theta0**2 - (1 - phi0) ** 2 / fine, 0)),
}
figure, ax = plt.subplots(figsize=(7, 3.8))
for index, (name, curve) in enumerate(closed.items()):
    ax.plot(fine, curve, color=f"C{index}", label=f"{name}, closed form")
    ax.plot(SPEEDS, measured[index], "o", color=f"C{index}", label="measured")
ax.axvline((1 - phi0) ** 2 / theta0**2, color="0.5", linestyle=":")
ax.set_xscale("log")
ax.set(
    xlabel=r"speed of the predictor $\kappa$", ylabel=r"encoder at the end, $\theta$"
)
ax.legend()
figure.tight_layout()

# %% [markdown]
# A step of finite size conserves the quantity only up to an error that falls in
# proportion to the rate, as that of Euler's method does. (In float64, as rounding would
# be the larger error.)

# %%
TIME = 10 if SMALL else 100
jax.config.update("jax_enable_x64", True)
exact = {"phi": jnp.float64(0.6), "theta": jnp.float64(0.1)}
print("   rate   largest change of the conserved quantity")
for rate in (0.1, 0.05, 0.025, 0.0125):
    point = path(exact, 4.0, True, rate, round(TIME / rate))
    values = np.asarray(conserved(point, 4.0, stop=True))
    print(f"{rate:7.4f}   {np.abs(values - values[0]).max():.2e}")
jax.config.update("jax_enable_x64", False)

# %% [markdown]
# ## A small SimSiam
#
# Encoder, projector and predictor of two layers each, on scikit-learn's digits and
# random views of them. `ot.collapse_metrics` measures the representation: `std_ratio`
# is 0 when all representations point one way and 1 when they are spread evenly,
# `effective_rank` says over which part of the dimensions whatever spread is left is
# divided, so the first is to be read first. Three variants:
#
# - SimSiam, with SGD, and the predictor kept at the first rate by `two_timescale`;
# - the same without stop-gradient;
# - BYOL: the target is `ema_params`, an average of parameters in the optimizer state.

# %%
WIDTH, FEATURE, BATCH, TRAIN = (16, 8, 16, 100) if SMALL else (128, 64, 128, 1297)
STEPS, EVERY, MEASURED = (6, 2, 32) if SMALL else (600, 20, 256)
digits = read_digits(TRAIN, 500)


def optimizer(rate=0.1):
    inner = optax.chain(optax.add_decayed_weights(1e-4), optax.trace(0.9))
    decay = optax.cosine_decay_schedule(rate, STEPS)
    return ot.two_timescale(inner, decay, fast="^predictor", fast_learning_rate=rate)


averaged = optax.chain(optimizer(), ot.ema_params(ot.cosine_ema_decay(0.97, STEPS)))
variants = {
    "SimSiam": (optimizer(), True, False),
    "no stop-gradient": (optimizer(), False, False),
    "BYOL": (averaged, True, True),
}


def train(tx, stop, averages, seed=0):
    """Parameters before and after, and the collapse metrics on the way."""
    key = jax.random.key(seed)
    params = model.init(key, pixels=64, width=WIDTH, feature=FEATURE)

    def step(carry, number):
        params, state = carry
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        batch = digits.train[jax.random.randint(keys[0], (BATCH,), 0, TRAIN)]
        views = view(keys[1], batch), view(keys[2], batch)

        def loss(params):
            target = optax.tree.get(state, "ema") if averages else params
            return model.loss(params, target, views, stop=stop)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def block(carry, first):
        steps = first + jnp.arange(EVERY)
        carry, _ = jax.lax.scan(lambda c, n: (step(c, n), None), carry, steps)
        return carry, ot.collapse_metrics(
            model.project(carry[0], digits.train[:MEASURED])
        )

    carry, history = (params, tx.init(params)), []
    for first in range(0, STEPS, EVERY):
        carry, found = block(carry, first)
        history.append(jax.device_get(found))
    return params, carry[0], history


@jax.jit
def neighbour_accuracy(params):
    """Of test digits whose most similar training digit has their label, per cent."""
    reference = len(digits.train)
    both = jnp.concatenate([digits.train, digits.test])
    features = model.encode(params, both, reference=reference)
    features /= jnp.linalg.norm(features, axis=1, keepdims=True) + 1e-6
    similar = features[reference:] @ features[:reference].T
    nearest = digits.train_labels[jnp.argmax(similar, axis=1)]
    return 100 * jnp.mean(nearest == digits.test_labels)


results = {name: train(*how) for name, how in variants.items()}
print(f"{'':18}std_ratio  effective_rank  nearest neighbour: before  after")
for name, (before, after, history) in results.items():
    last = history[-1]
    print(
        f"{name:18}{last['std_ratio']:9.3f}  {last['effective_rank']:14.3f}"
        f"  {neighbour_accuracy(before):23.1f} %  {neighbour_accuracy(after):.1f} %"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4), sharey=True)
at = range(EVERY, STEPS + 1, EVERY)
for ax, reading in zip(axes, ("std_ratio", "effective_rank"), strict=True):
    curves = {
        name: [point[reading] for point in history]
        for name, (_, _, history) in results.items()
    }
    ot.plots.collapse(curves, steps=at, ax=ax)
    simsiam, _, byol = ax.lines[:3]  # the two may lie on each other
    simsiam.set(linewidth=6, alpha=0.4)
    byol.set_linestyle("--")
    ax.legend()
    ax.set_title(reading)
figure.tight_layout()
