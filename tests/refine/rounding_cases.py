"""Small layers with inputs that depend on each other, for the tests of rounding."""

from __future__ import annotations

import numpy as np

from edgeq.qtypes import Granularity, IntType, PerAxis, TensorSpec
from edgeq.stages.refine.rounding import Moments, Quadratic, quadratic


def spec(bits: int = 8, granularity: Granularity | None = None, **more: bool) -> TensorSpec:
    return TensorSpec(IntType(bits, True), True, granularity or PerAxis(0), **more)


def moments(groups: int, size: int, *, count: int = 400, noise: float = 0.1, seed: int = 0) -> Moments:
    """Inputs that a few hidden numbers drive, with means, and noise on top in the quantized model."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((groups, max(2, size // 2), size))
    found = Moments.empty(groups, size)
    for _ in range(2):
        hidden = rng.standard_normal((groups, count, mixed.shape[1]))
        x = hidden @ mixed + 0.3 * rng.standard_normal((groups, count, size)) + 1.0
        found.add(x, x + noise * rng.standard_normal(x.shape))
        found.samples += 1
    return found


def problem(groups: int, rows: int, size: int, seed: int = 0) -> Quadratic:
    matrix = np.random.default_rng(seed + 100).standard_normal((groups, rows, size))
    return quadratic(matrix, moments(groups, size, seed=seed))


def covering(found: Quadratic, form: TensorSpec) -> np.ndarray:
    """The scale per output channel that clips nothing, ``[G, M, 1]``, in float32's numbers."""
    top = form.qmax - form.middle
    return (np.abs(found.target).max(axis=2, keepdims=True) / top).astype(np.float32).astype(np.float64)


def nearest(found: Quadratic, scale: np.ndarray, form: TensorSpec) -> np.ndarray:
    return np.clip(np.rint(found.target / scale), form.qmin - form.middle, form.qmax - form.middle)


def best_of_all(found: Quadratic, scale: np.ndarray, form: TensorSpec) -> np.ndarray:
    """The least cost of any levels, by trying all, ``[G, M]``."""
    size = found.target.shape[2]
    choices = np.arange(form.qmin - form.middle, form.qmax - form.middle + 1)
    every = np.stack(np.meshgrid(*[choices] * size, indexing="ij"), axis=-1).reshape(-1, size)
    least = np.empty(found.target.shape[:2])
    for group, row in np.ndindex(least.shape):
        error = every * scale[group, row] - found.target[group, row]
        least[group, row] = ((error @ found.gram[group]) * error).sum(axis=1).min()
    return least
