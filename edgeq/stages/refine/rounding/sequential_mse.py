"""Scales by the error of the layer's outputs: of a row of candidates the one with the least quadratic cost.

The search of AIMET's "sequential MSE" (Qualcomm), with the cost in closed form rather than by running the layer:
``s* = argmin_s (W - Q_s(W)) H (W - Q_s(W))^T``.
"""

from __future__ import annotations

import numpy as np

from edgeq.affine import SCALE_FLOOR, legal_scale
from edgeq.qtypes import PerBlock, TensorSpec
from edgeq.stages.refine.rounding.comq import comq
from edgeq.stages.refine.rounding.gptq import gptq
from edgeq.stages.refine.rounding.limits import Limits
from edgeq.stages.refine.rounding.quadratic import Quadratic

__all__ = ["sequential_mse"]

_POWERS = 4
"""Powers of two that are tried: the one that clips nothing, and the next ones below."""


def sequential_mse(
    problem: Quadratic,
    scale: np.ndarray,
    spec: TensorSpec,
    *,
    limits: Limits | None = None,
    candidates: int = 20,
    inner: str = "nearest",
) -> np.ndarray:
    """A scale of the shape of ``scale`` ``[G or 1, M or 1, blocks or 1]``, float64 with values of float32.

    ``scale`` is a candidate itself, so that the result costs no more. The others are shares of the scale that
    clips nothing. ``inner`` says how each is judged: ``nearest`` rounds, ``comq`` moves every level once more,
    ``gptq`` rounds as that does. Blocks of a row are judged one at a time, the others held real.
    """
    limits = limits or Limits.of(spec)
    size = problem.target.shape[2]
    width = spec.granularity.size if isinstance(spec.granularity, PerBlock) else size
    found = np.empty(scale.shape)
    for block, begin in enumerate(range(0, size, width)):
        part = slice(begin, begin + width)
        part_of = Quadratic(problem.target[:, :, part], problem.gram[:, part, part])
        found[:, :, block : block + 1] = _search(
            part_of, scale[:, :, block : block + 1].astype(np.float64), spec, limits.within(part), candidates, inner
        )
    return found


def _search(
    problem: Quadratic, scale: np.ndarray, spec: TensorSpec, limits: Limits, candidates: int, inner: str
) -> np.ndarray:
    shared = tuple(axis for axis in (0, 1) if scale.shape[axis] == 1)
    largest = np.abs(problem.target).max(axis=(2, *shared), keepdims=True) / limits.high
    if spec.power_of_two:
        tried = [legal_scale(largest, spec) * 0.5**step for step in range(_POWERS)]
    else:
        least = 0.5 if spec.dtype.bits >= 8 else 0.25
        tried = [largest * share for share in np.linspace(least, 1.05, candidates)]
    best, least_cost = scale, _cost(problem, scale, spec, limits, inner, shared)
    for candidate in tried:
        legal = np.maximum(candidate, SCALE_FLOOR).astype(np.float32).astype(np.float64)
        cost = _cost(problem, legal, spec, limits, inner, shared)
        better = cost < least_cost
        best, least_cost = np.where(better, legal, best), np.where(better, cost, least_cost)
    return best


def _cost(
    problem: Quadratic, scale: np.ndarray, spec: TensorSpec, limits: Limits, inner: str, shared: tuple[int, ...]
) -> np.ndarray:
    """``[G or 1, M or 1, 1]``: the cost of all that share a scale."""
    if inner == "gptq":
        levels = gptq(problem, scale, spec, limits=limits)
    else:
        _, levels = comq(problem, scale, spec, limits=limits, sweeps=1 if inner == "comq" else 0)
    return problem.cost(levels * scale).sum(axis=shared, keepdims=True)[:, :, None]
