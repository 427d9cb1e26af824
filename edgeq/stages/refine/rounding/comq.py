"""COMQ: coordinate descent on the levels, and on the scale between two sweeps.

Zhang et al. 2024, arXiv 2403.07134, section 3.
"""

from __future__ import annotations

import numpy as np

from edgeq.affine import SCALE_FLOOR
from edgeq.qtypes import PerBlock, TensorSpec
from edgeq.stages.refine.rounding.limits import Limits
from edgeq.stages.refine.rounding.quadratic import Quadratic, columns

__all__ = ["comq"]

_BLOCK = 64
"""Columns that are moved one by one; what they change behind them follows as one product of matrices."""


def comq(
    problem: Quadratic,
    scale: np.ndarray,
    spec: TensorSpec,
    *,
    start: np.ndarray | None = None,
    limits: Limits | None = None,
    sweeps: int = 3,
    scales: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """``(scale, levels)``, float64 and int32 ``[G, M, K]``, of no higher cost than the start.

    ``start`` are levels ``[G, M, K]`` within the limits; without, ``target / scale`` is rounded to nearest. Each
    sweep sets every column in turn, the loudest first, to the level that is best while all others stay. With
    ``scales`` the scale is set to its optimum for the levels after each sweep, unless ``spec`` allows powers of
    two or whole multiples only. ``scale`` is ``[G or 1, M or 1, blocks or 1]``, its values those of float32.
    """
    limits = limits or Limits.of(spec)
    scale = scale.astype(np.float64)
    free = scales and not spec.power_of_two and getattr(spec.granularity, "scale_bits", None) is None
    levels = _nearest(problem, scale, spec, limits) if start is None else start.astype(np.float64)
    order = problem.order
    ordered, permuted = problem.permuted(order), limits.permuted(order)
    size = levels.shape[2]
    for _ in range(sweeps):
        steps = np.broadcast_to(columns(scale, spec, size), levels.shape)
        moved = np.take_along_axis(levels, order[:, None, :], axis=2)
        _sweep(ordered, np.take_along_axis(steps, order[:, None, :], axis=2), moved, permuted)
        before = levels.copy()
        np.put_along_axis(levels, order[:, None, :], moved, axis=2)
        # Sums of float64 are not exact: a channel that a sweep did not improve stays as it was.
        worse = problem.cost(levels * steps) > problem.cost(before * steps)
        levels = np.where(worse[:, :, None], before, levels)
        held = scale
        if free:
            scale = _refit(problem, levels, scale, spec)
        if np.array_equal(levels, before) and np.array_equal(scale, held):
            break
    return scale, levels.astype(np.int32)


def _nearest(problem: Quadratic, scale: np.ndarray, spec: TensorSpec, limits: Limits) -> np.ndarray:
    levels = np.zeros_like(problem.target)
    every = problem.target / columns(scale, spec, levels.shape[2])
    if limits.partner is None:
        return np.clip(np.rint(every), limits.low, limits.high)
    limits = limits.permuted(np.broadcast_to(np.arange(levels.shape[2]), (len(levels), levels.shape[2])))
    for column in range(levels.shape[2]):
        levels[:, :, column] = limits.round(every[:, :, column], levels, column)
    return levels


def _sweep(problem: Quadratic, steps: np.ndarray, levels: np.ndarray, limits: Limits) -> None:
    """Move every column of ``levels`` once, in place."""
    size = levels.shape[2]
    pull = (problem.target - levels * steps) @ problem.gram  # minus half of the gradient
    weight = np.diagonal(problem.gram, axis1=1, axis2=2)
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        near = pull[:, :, begin:end].copy()
        change = np.zeros_like(near)
        for i in range(begin, end):
            step = steps[:, :, i]
            best = near[:, :, i - begin] / weight[:, i, None] / step + levels[:, :, i]
            new = limits.round(best, levels, i)
            moved = (new - levels[:, :, i]) * step
            levels[:, :, i] = new
            change[:, :, i - begin] = moved
            near -= moved[:, :, None] * problem.gram[:, None, i, begin:end]
        pull -= change @ problem.gram[:, begin:end]


def _refit(problem: Quadratic, levels: np.ndarray, scale: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """The scale that is best for ``levels``, block by block; where float32 makes it no better, the old one."""
    size = levels.shape[2]
    width = spec.granularity.size if isinstance(spec.granularity, PerBlock) else size
    shared = tuple(axis for axis in (0, 1) if scale.shape[axis] == 1)
    pull = (problem.target - levels * columns(scale, spec, size)) @ problem.gram
    scale = scale.copy()
    for block, begin in enumerate(range(0, size, width)):
        here = levels[:, :, begin : begin + width]
        gram = problem.gram[:, begin : begin + width]
        slope = (here * pull[:, :, begin : begin + width]).sum(axis=2).sum(axis=shared, keepdims=True)
        bend = ((here @ gram[:, :, begin : begin + width]) * here).sum(axis=2).sum(axis=shared, keepdims=True)
        old = scale[:, :, block].copy()
        new = old + np.divide(slope, bend, out=np.zeros_like(slope), where=bend > 0)
        new = new.astype(np.float32).astype(np.float64)
        change = new - old
        better = (new >= SCALE_FLOOR) & (bend * change * change - 2 * slope * change < 0)
        scale[:, :, block] = np.where(better, new, old)
        pull -= (here * (scale[:, :, block] - old)[:, :, None]) @ gram
    return scale
