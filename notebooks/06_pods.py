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
# # Pods: many devices, one result
#
# On a pod, parameters are spread over a mesh of devices. Then a random mask must not
# depend on the mesh, optimizer state should lie where its parameter lies, and a run
# must go on from a checkpoint as if nothing had happened. All of it is shown here on
# eight devices that XLA simulates on the CPU; the flag must be set before JAX is
# imported.

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import hashlib
import pathlib
import re
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optaxtricks as ot

SMALL = os.environ.get("OPTAXTRICKS_SMALL") == "1"

plt.style.use("petroff10")  # colours that differ for colour-blind readers too
plt.rcParams |= {"axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False}
print(len(jax.devices()), "devices")

# %% [markdown]
# ## A model over a mesh
#
# A small classifier of Gaussian clusters. Batches are split over `data`, the hidden
# width over `model`.

# %%
INPUTS, HIDDEN, CLASSES, BATCH = (16, 32, 4, 32) if SMALL else (64, 1024, 8, 256)
HALF = 3 if SMALL else 60

PLACES = {"first": P(None, "model"), "second": P("model", "data"), "head": P("model")}


def mesh_of(data, model):
    devices = jax.devices()[: data * model]
    kinds = (AxisType.Auto,) * 2
    return jax.make_mesh((data, model), ("data", "model"), kinds, devices=devices)


def placed(tree, mesh):
    return {
        name: jax.device_put(leaf, NamedSharding(mesh, PLACES[name]))
        for name, leaf in tree.items()
    }


rng = np.random.default_rng(0)
kernel = lambda *shape: rng.standard_normal(shape, np.float32) * (2 / shape[0]) ** 0.5
start = {
    "first": kernel(INPUTS, HIDDEN),
    "second": kernel(HIDDEN, HIDDEN),
    "head": kernel(HIDDEN, CLASSES),
}
centres = 0.3 * rng.standard_normal((CLASSES, INPUTS)).astype(np.float32)


def batch(number, mesh):
    rng = np.random.default_rng([1, number])
    y = rng.integers(CLASSES, size=BATCH)
    x = centres[y] + rng.standard_normal((BATCH, INPUTS), np.float32)
    spread = NamedSharding(mesh, P("data"))
    return jax.device_put({"x": x, "y": y.astype(np.int32)}, spread)


def loss_fn(params, batch):
    h = jax.nn.relu(batch["x"] @ params["first"])
    h = jax.nn.relu(h @ params["second"])
    losses = optax.softmax_cross_entropy_with_integer_labels(
        h @ params["head"], batch["y"]
    )
    return losses.mean()


# %% [markdown]
# ## Masks that do not know the mesh
#
# The random mask of a step is a pure function of key, step, path and index; the global
# threshold of a Fisher mask is exact, counted in integers. So both are the same on
# every mesh, bit for bit. We compare digests.

# %%
MESHES = ((1, 1), (8, 1), (4, 2), (2, 4))
draw = jax.jit(lambda tree: ot.dropout_mask(tree, 0.3, key=0, step=7))
scores = jax.tree.map(lambda w: np.square(w) + np.float32(1e-9), start)


def digest(tree):
    """A short hash of all bytes of all leaves."""
    data = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))
    return hashlib.sha256(data).hexdigest()[:12]


digests = set()
for shape in MESHES:
    mesh = mesh_of(*shape)
    random = digest(draw(placed(start, mesh)))
    fisher = digest(ot.top_fraction_mask(placed(scores, mesh), 0.3))
    digests.add((random, fisher))
    print(f"mesh {shape}: dropout mask {random}, top-fraction mask {fisher}")
print("all meshes agree:", len(digests) == 1)

# %% [markdown]
# ## State where its parameter is
#
# Under automatic sharding `jax.jit(tx.init)` has nothing to go by, as zeros depend on
# no parameter, and puts a whole copy of the state on every device.
# `ot.state_shardings(tx, params)` gives `out_shardings` that place each part beside its
# parameter. (Nothing is computed for it; it works for any Optax optimizer.)

# %%
mesh = mesh_of(4, 2)
params = placed(start, mesh)
mask = ot.top_fraction_mask(placed(scores, mesh), 0.5, where="^(first|second)")
adam = ot.child_tuning_f(optax.adam(1e-3), 0.5, key=0)
tx = ot.child_tuning_d(adam, mask)
places = ot.state_shardings(tx, params)
state = jax.jit(tx.init, out_shardings=places)(params)
careless = jax.jit(tx.init)(params)


def bytes_on_first_device(tree):
    shards = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(tree)]
    return sum(shard.nbytes for shard in shards)


for keys, leaf in jax.tree.leaves_with_path(state):
    if leaf.ndim == 2:
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        print(f"{name:22}{leaf.dtype!s:9}{leaf.shape!s:15}{leaf.sharding.spec}")

held = {
    "parameters": bytes_on_first_device(params),
    "state, jit(init)": bytes_on_first_device(careless),
    "state, with\nstate_shardings": bytes_on_first_device(state),
}
figure, ax = plt.subplots(figsize=(7, 2.6))
bars = ax.barh(list(held), [size / 2**20 for size in held.values()], color="C0")
ax.bar_label(bars, fmt="%.2f", padding=3)
ax.invert_yaxis()
ax.margins(x=0.12)
ax.set(xlabel="memory on one of eight devices (MiB)")
figure.tight_layout()

# %% [markdown]
# ## No communication of its own
#
# The training step communicates, as gradients are summed over `data`. The update alone,
# with both masks in it, compiles to no collective at all.

# %%
COLLECTIVE = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("


def step(params, state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


in_place = jax.tree.map(lambda leaf: leaf.sharding, (params, state))
training = jax.jit(step, out_shardings=(*in_place, None))
programs = {
    "update": jax.jit(tx.update).lower(params, state, params).compile(),
    "training step": training.lower(params, state, batch(0, mesh)).compile(),
}
for name, program in programs.items():
    print(f"{name}: {len(re.findall(COLLECTIVE, program.as_text()))} collectives")

# %% [markdown]
# ## Stop, save, go on
#
# A run of two halves is compared with one that is saved by Orbax after the first half,
# dropped, and restored. Masks, moments and the count of steps are all in the state, so
# the two end in the same bits. The shardings of the restored arrays are those that we
# ask for.


# %%
def run(params, state, steps, mesh):
    losses = []
    for number in steps:
        params, state, loss = training(params, state, batch(number, mesh))
        losses.append(float(loss))
    return params, state, losses


first, second = range(HALF), range(HALF, 2 * HALF)
half = run(params, state, first, mesh)
whole = run(*half[:2], second, mesh)


def abstract(tree, shardings):
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        tree,
        shardings,
    )


wanted = abstract(half[:2], in_place)
with tempfile.TemporaryDirectory() as folder:
    saved = pathlib.Path(folder) / "run"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(saved, half[:2])
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(saved, wanted)
        # The same files for another mesh.
        other = mesh_of(2, 4)
        moved = jax.tree.map(lambda place: NamedSharding(other, place.spec), in_place)
        elsewhere = checkpointer.restore(saved, abstract(half[:2], moved))

resumed = run(*restored, second, mesh)
print("parameters, in one go: ", digest(whole[0]))
print("parameters, resumed:   ", digest(resumed[0]))
print("state, in one go:      ", digest(whole[1]))
print("state, resumed:        ", digest(resumed[1]))
print("same losses:", whole[2] == resumed[2])

# %% [markdown]
# On another mesh the restored state has the same bits too, masks included. Training
# then agrees up to the order in which gradients are summed. (Adam turns rounding into
# steps of full size where a gradient is next to nothing, so single entries differ the
# most.)

# %%
print("state, saved:                ", digest(half[1]))
print("state, restored elsewhere:   ", digest(elsewhere[1]))
training = jax.jit(step, out_shardings=(*moved, None))
continued = run(*elsewhere, second, other)
pairs = zip(*map(jax.tree.leaves, (whole[0], continued[0])), strict=True)
gaps = np.concatenate([np.abs(np.asarray(a) - b).ravel() for a, b in pairs])
median, largest = np.median(gaps), gaps.max()
print(f"after {HALF} more steps, difference of losses: ", end="")
print(f"{np.abs(np.subtract(whole[2], continued[2])).max():.1e}")
print(f"of parameters, median and largest: {median:.1e}, {largest:.1e}")
same = [
    bool((np.asarray(a) == b)[~np.asarray(m)].all())
    for a, b, m in zip(*map(jax.tree.leaves, (continued[0], start, mask)), strict=True)
    if m is not True
]
print("entries outside the mask have not moved:", all(same))

# %%
figure, ax = plt.subplots(figsize=(7.5, 3.6))
ax.plot(first, half[2], color="0.5", label="first half, mesh (4, 2)")
ax.plot(second, whole[2], color="C0", linewidth=4, label="in one go, (4, 2)")
ax.plot(second, resumed[2], color="C1", label="resumed, (4, 2)")
ax.plot(second, continued[2], ":", color="black", label="resumed, (2, 4)")
ax.axvline(HALF - 0.5, color="0.5", linestyle=":", linewidth=1)
ax.set(xlabel="step", ylabel="loss (nats)", title="Stopped and resumed")
ax.legend()
figure.tight_layout()
