"""Makes `torch_optimizers.npz`: trajectories of two optimizers written by others.

Lion is that of lion-pytorch; lazy Adam is `torch.optim.SparseAdam` behind embeddings
whose gradients are sparse. The tests read the arrays and need neither. In a separate
environment with torch 2.13.0 (CPU) and lion-pytorch 0.2.5:

    python tests/transforms/data/make_torch_references.py
"""

import pathlib

import numpy as np
import torch
from lion_pytorch import Lion

HERE = pathlib.Path(__file__).resolve().parent
STEPS = 12
LION = {"default": (0.9, 0.99, 0.01, 0.1), "language": (0.95, 0.98, 0.003, 1.0)}
SHAPES = {"matrix": (5, 4), "vector": (4,)}
NUM_ROWS, WIDTH, LOOKUPS = 9, 3, 5
RATE, EPSILON = 0.02, 1e-10


def lion(rng, betas_rate_decay):
    """Gradients, parameters and momenta, one entry a step."""
    b1, b2, rate, decay = betas_rate_decay
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    params = {name: parameter(value) for name, value in start.items()}
    method = Lion(params.values(), lr=rate, betas=(b1, b2), weight_decay=decay)
    found = {f"{name}/start": np.float32(value) for name, value in start.items()}
    for name, shape in SHAPES.items():
        found[f"{name}/grads"] = np.float32(rng.normal(size=(STEPS, *shape)))
    path = {f"{name}/{kind}": [] for name in SHAPES for kind in ("params", "mu")}
    for step in range(STEPS):
        for name, param in params.items():
            param.grad = torch.from_numpy(found[f"{name}/grads"][step].copy())
        method.step()
        for name, param in params.items():
            path[f"{name}/params"].append(param.detach().numpy().copy())
            path[f"{name}/mu"].append(method.state[param]["exp_avg"].numpy().copy())
    return found | {name: np.stack(values) for name, values in path.items()}


def lazy_adam(rng):
    """Look-ups with repeated ids, their cotangents, and what became of the table."""
    start = np.float32(rng.normal(size=(NUM_ROWS, WIDTH)))
    embed = torch.nn.Embedding(NUM_ROWS, WIDTH, sparse=True)
    embed.weight.data.copy_(torch.from_numpy(start))
    method = torch.optim.SparseAdam(embed.parameters(), lr=RATE, eps=EPSILON)
    # The last two rows are never looked up; some rows rest for many steps.
    ids = rng.integers(0, NUM_ROWS - 2, size=(STEPS, LOOKUPS))
    ids[3:9][ids[3:9] == 0] = 1
    cotangents = np.float32(rng.normal(size=(STEPS, LOOKUPS, WIDTH)))
    path = {"params": [], "mu": [], "nu": []}
    for step in range(STEPS):
        method.zero_grad()
        rows = embed(torch.from_numpy(ids[step]))
        (rows * torch.from_numpy(cotangents[step])).sum().backward()
        method.step()
        state = method.state[embed.weight]
        path["params"].append(embed.weight.detach().numpy().copy())
        path["mu"].append(state["exp_avg"].to_dense().numpy().copy())
        path["nu"].append(state["exp_avg_sq"].to_dense().numpy().copy())
    found = {"start": start, "ids": np.int32(ids), "cotangents": cotangents}
    return found | {name: np.stack(values) for name, values in path.items()}


def parameter(value):
    """A float32 parameter that starts at these values."""
    return torch.nn.Parameter(torch.from_numpy(np.float32(value)))


def main():
    arrays = {}
    for number, (name, setting) in enumerate(LION.items()):
        found = lion(np.random.default_rng(number), setting)
        arrays |= {f"lion/{name}/{key}": value for key, value in found.items()}
        arrays[f"lion/{name}/setting"] = np.float64(setting)
    found = lazy_adam(np.random.default_rng(9))
    arrays |= {f"lazy_adam/{key}": value for key, value in found.items()}
    arrays["lazy_adam/setting"] = np.float64((RATE, EPSILON))
    np.savez_compressed(HERE / "torch_optimizers.npz", **arrays)


if __name__ == "__main__":
    main()
