"""A linear softmax model, and its Fisher information in NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np

FEATURES, CLASSES, EXAMPLES = 3, 4, 10


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


PARAMS = {"w": values(FEATURES, CLASSES), "b": values(CLASSES, seed=1)}
X = values(EXAMPLES, FEATURES, seed=2)
Y = np.random.default_rng(3).integers(CLASSES, size=EXAMPLES).astype(np.int32)


def log_probabilities(params, example):
    x, _ = example
    return jax.nn.log_softmax(x @ params["w"] + params["b"])


def log_likelihood(params, example):
    return log_probabilities(params, example)[example[1]]


def reference(labels="observed", per="example", power=2, clip_norm=None, split=()):
    """The definition in NumPy loops, with the closed-form gradient of softmax."""
    groups = np.split(np.arange(EXAMPLES), split) if per == "batch" else range(EXAMPLES)
    sums = {"w": 0.0, "b": 0.0}
    for group in groups:
        terms, means = [], {"w": 0.0, "b": 0.0}
        for n in np.atleast_1d(group):
            x = X[n].astype(np.float64)
            logits = x @ PARAMS["w"] + PARAMS["b"]
            p = np.exp(logits) / np.exp(logits).sum()
            grads = [np.eye(CLASSES)[c] - p for c in range(CLASSES)]
            grads = [{"w": np.outer(x, g), "b": g} for g in grads]
            if labels == "expected":
                terms += [(p[c], grads[c]) for c in range(CLASSES)]
            for name in means:
                means[name] = means[name] + grads[Y[n]][name] / np.size(group)
        for weight, grad in terms or [(1.0, means)]:
            for name, g in grad.items():
                norm = np.linalg.norm(g)
                factor = 1 if clip_norm is None else min(1, clip_norm / (norm + 1e-6))
                sums[name] = sums[name] + weight * np.abs(factor * g) ** power
    return {name: total / len(groups) for name, total in sums.items()}


def assert_close(got, want, rtol=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


def batches(*splits):
    return [(X[i], Y[i]) for i in np.split(np.arange(EXAMPLES), splits)]
