"""Weights for kernels that add two products in 16 bits, where they saturate: x86-64 without VNNI or AMX.

``vpmaddubsw`` multiplies uint8 by int8 and adds each pair of neighbours: 255 (127 + 127) does not fit.
Nothing saturates if no two neighbours of one sign add up to more than 128. That costs much less than a
whole bit of every weight, as most pairs are far below (measured: EfficientNet-Lite0's weights keep
40.7 dB, with 7 bits 36.3, without any limit 42.3).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.affine import legal_scale
from edgeq.pairs import multiplied_rows
from edgeq.qtypes import PerTensor, QParams, TensorSpec

__all__ = ["limit_pairs", "multiplied_rows"]

_FACTORS = (*np.linspace(0.8, 1.0, 5), *np.linspace(1.04, 2.0, 25))
"""Scales that are tried, in multiples of the one that clips nothing; at 2 no pair is too large."""


def limit_pairs(
    node: ir.Node, weight: np.ndarray, spec: TensorSpec, limit: int, *, clip: bool = True
) -> tuple[QParams, np.ndarray] | None:
    """Scales and float weights whose integers keep to ``limit``; None if the kernel does not add pairs.

    The weights are multiples of their scale. Of each pair that is too large both lose half of the
    excess; the scale, per tensor or row, is the one with the least squared error of all that.
    """
    order = multiplied_rows(node, np.arange(weight.size).reshape(weight.shape))
    if order is None:
        return None
    rows = weight.ravel()[order].astype(np.float64)
    whole = isinstance(spec.granularity, PerTensor)
    largest = np.abs(rows).max() if whole else np.abs(rows).max(axis=1)
    best, scale = np.zeros_like(rows), np.zeros(np.shape(largest))
    least = np.full(np.shape(largest), np.inf)
    for factor in _FACTORS:
        if factor < 1 and not clip:
            continue
        step = legal_scale(largest * factor / (spec.qmax - spec.middle), spec).astype(np.float32).astype(np.float64)
        found = _limited(rows, step if whole else step[:, None], spec, limit)
        error = np.square(found - rows)
        total = error.sum() if whole else error.sum(axis=1)
        better = total < least
        least, scale = np.where(better, total, least), np.where(better, step, scale)
        best = np.where(better if whole else better[:, None], found, best)
    changed = np.empty(weight.size, np.float32)
    changed[order.ravel()] = best.ravel()
    zero = np.full(np.shape(scale), spec.middle).astype(spec.dtype.dtype)
    return QParams(np.asarray(scale, np.float32), zero, spec), changed.reshape(weight.shape)


def _limited(rows: np.ndarray, step: np.ndarray, spec: TensorSpec, limit: int) -> np.ndarray:
    """``rows`` rounded to multiples of ``step``, with no two neighbours of one sign beyond ``limit``."""
    length = rows.shape[1]
    levels = np.clip(np.rint(rows / step), spec.qmin - spec.middle, spec.qmax - spec.middle)
    pairs = np.pad(levels, ((0, 0), (0, length % 2))).reshape(len(rows), -1, 2)
    same = np.sign(pairs[..., 0]) == np.sign(pairs[..., 1])
    excess = np.where(same, np.maximum(np.abs(pairs.sum(axis=2)) - limit, 0), 0)
    pairs = pairs - np.sign(pairs) * np.stack([np.ceil(excess / 2), np.floor(excess / 2)], axis=2)
    return pairs.reshape(len(rows), -1)[:, :length] * step
