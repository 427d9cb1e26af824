"""GPTQ: round column by column, and let the columns still to come make good each error.

Frantar et al. 2022, arXiv 2210.17323: the update of equation 2 for a fixed order, in a Cholesky form.
"""

from __future__ import annotations

import numpy as np

from edgeq.qtypes import TensorSpec
from edgeq.stages.refine.rounding.limits import Limits
from edgeq.stages.refine.rounding.quadratic import Quadratic, columns

__all__ = ["gptq"]

_BLOCK = 64
"""Columns whose errors are carried one by one; to those behind they go as one product of matrices."""


def gptq(problem: Quadratic, scale: np.ndarray, spec: TensorSpec, *, limits: Limits | None = None) -> np.ndarray:
    """Levels, int32 ``[G, M, K]``, for a fixed ``scale`` ``[G or 1, M or 1, blocks or 1]``.

    Columns go by falling diagonal of the gram (the paper's code calls it act-order); as the scales are fixed
    before, that costs nothing when the model runs.

    With ``gram = R R^T``, R upper triangular, the cost is ``|R^T e|^2``, and row i of ``R^T`` reads the errors
    up to i alone: the best real number for column i, the errors before it given and those behind it free, is
    ``target_i + sum_{j<i} R_ji e_j / R_ii``. These are the paper's updates without the inverse of the
    gram (Chen et al. 2025, arXiv 2507.18553: GPTQ is Babai's nearest plane algorithm).
    """
    groups, rows, size = problem.target.shape
    order = problem.order
    limits = (limits or Limits.of(spec)).permuted(order)
    ordered = problem.permuted(order)
    steps = np.broadcast_to(columns(scale.astype(np.float64), spec, size), ordered.target.shape)
    steps = np.take_along_axis(steps, order[:, None, :], axis=2)
    carried = _carried(ordered.gram)
    levels, error = np.zeros(ordered.target.shape), np.zeros(ordered.target.shape)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        wanted = ordered.target[:, :, start:stop] + error[:, :, :start] @ carried[:, start:stop, :start].swapaxes(1, 2)
        for i in range(start, stop):
            best = wanted[:, :, i - start] / steps[:, :, i]
            levels[:, :, i] = limits.round(best, levels, i)
            error[:, :, i] = ordered.target[:, :, i] - levels[:, :, i] * steps[:, :, i]
            wanted[:, :, i + 1 - start :] += error[:, :, i, None] * carried[:, None, i + 1 : stop, i]
    found = np.empty((groups, rows, size), np.int32)
    np.put_along_axis(found, order[:, None, :], levels.astype(np.int32), axis=2)
    return found


def _carried(gram: np.ndarray) -> np.ndarray:
    """``R^T`` with rows divided by the diagonal, lower triangular: how much of error j column i takes over."""
    upper = np.linalg.cholesky(gram[:, ::-1, ::-1])[:, ::-1, ::-1]
    lower = upper.swapaxes(1, 2)
    return lower / np.diagonal(lower, axis1=1, axis2=2)[:, :, None]
