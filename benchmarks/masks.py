"""Random masks for leaves of some shapes."""

from collections.abc import Mapping

import numpy as np

Shapes = Mapping[str, tuple[int, ...]]


def entries(shapes: Shapes, kept: float) -> dict[str, np.ndarray]:
    """Of each leaf so many entries."""
    rng = np.random.default_rng(0)
    return {path: rng.random(n, np.float32) < kept for path, n in shapes.items()}


def tiles(shapes: Shapes, kept: float) -> dict[str, np.ndarray | bool]:
    """Of each leaf so many tiles of (8, 128); all of one that is not made of them."""
    rng = np.random.default_rng(0)

    def mask(shape: tuple[int, ...]) -> np.ndarray | bool:
        if len(shape) < 2 or shape[-2] % 8 or shape[-1] % 128:
            return True
        drawn = rng.random((*shape[:-2], shape[-2] // 8, shape[-1] // 128)) < kept
        return np.repeat(np.repeat(drawn, 8, -2), 128, -1)

    return {path: mask(shape) for path, shape in shapes.items()}
