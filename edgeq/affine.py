"""The only place where integer arithmetic is written: quantize, dequantize, ranges to parameters.

All functions follow ONNX's QuantizeLinear-21: ``q = saturate(round_half_even(x / scale) + zero_point)``,
in float32, which matches ONNX Runtime's kernels bit for bit.
"""

from __future__ import annotations

import numpy as np

from edgeq.qtypes import PerAxis, PerBlock, PerTensor, QParams, TensorSpec

__all__ = [
    "SCALE_FLOOR",
    "blocks",
    "dequantize",
    "expand",
    "fake_quantize",
    "legal_scale",
    "pack",
    "quantize",
    "range_to_qparams",
    "split_scale",
]

SCALE_FLOOR = np.float32(2.0**-23)
"""Scale of a dead channel: small enough to hold nothing, large enough to stay a normal float32."""


def expand(parameter: np.ndarray, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """Broadcast a scale or zero point to a tensor of ``shape``.

    ``[C]`` with ``PerAxis(1)`` and shape ``[N, C, H]`` -> ``[1, C, 1]``; a blocked parameter is
    repeated along its axis and cut to the tensor's length.
    """
    granularity = spec.granularity
    if isinstance(granularity, PerTensor):
        return parameter
    if isinstance(granularity, PerAxis):
        view = [1] * len(shape)
        view[granularity.axis] = -1
        return parameter.reshape(view)
    repeated = np.repeat(parameter, granularity.size, axis=granularity.axis)
    return np.take(repeated, range(shape[granularity.axis]), axis=granularity.axis)


def blocks(x: np.ndarray, granularity: PerBlock) -> np.ndarray:
    """View ``x`` as ``[..., blocks, ...., size]``: the block's elements moved to a new last axis.

    The last block is padded with zeros, which no range method lets widen a range.
    ``[K, N]``, axis 0, size 32 -> ``[ceil(K / 32), N, 32]``.
    """
    axis, size = granularity.axis, granularity.size
    padding = -x.shape[axis] % size
    if padding:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, padding)
        x = np.pad(x, widths)
    split = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return np.moveaxis(x.reshape(split), axis + 1, -1)


def quantize(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """Float -> integers of ``qparams.spec.dtype``, same shape as ``x``."""
    spec = qparams.spec
    scale = expand(qparams.scale, spec, x.shape)
    zero = expand(qparams.zero_point.astype(np.float32), spec, x.shape)
    # float32 on purpose: rounding x / scale in float64 differs from ONNX Runtime at ties.
    levels = np.rint(x.astype(np.float32, copy=False) / scale) + zero
    return np.clip(levels, spec.qmin, spec.qmax).astype(spec.dtype.dtype)


def dequantize(q: np.ndarray, qparams: QParams) -> np.ndarray:
    """Integers -> float32, same shape as ``q``."""
    scale = expand(qparams.scale, qparams.spec, q.shape)
    zero = expand(qparams.zero_point.astype(np.float32), qparams.spec, q.shape)
    return (q.astype(np.float32) - zero) * scale


def fake_quantize(x: np.ndarray, qparams: QParams) -> np.ndarray:
    """``dequantize(quantize(x))``: what the integers can say of ``x``."""
    return dequantize(quantize(x, qparams), qparams)


def range_to_qparams(lo: np.ndarray | float, hi: np.ndarray | float, spec: TensorSpec) -> QParams:
    """Scale and zero point that cover ``[lo, hi]``, always with an exact zero.

    ``lo`` and ``hi`` have the shape of the scale. Symmetric types use ``[-qmax, qmax]``, so that
    ``-x`` is representable whenever ``x`` is; asymmetric types use all levels. A range of width
    zero (a dead channel) gets ``SCALE_FLOOR``.
    """
    lo = np.minimum(np.asarray(lo, dtype=np.float64), 0.0)
    hi = np.maximum(np.asarray(hi, dtype=np.float64), 0.0)
    if spec.symmetric:
        scale = legal_scale(np.maximum(-lo, hi) / (spec.qmax - spec.middle), spec)
        zero = np.full(scale.shape, spec.middle)
    else:
        scale = legal_scale((hi - lo) / (spec.qmax - spec.qmin), spec)
        zero = np.clip(np.rint(spec.qmin - lo / scale), spec.qmin, spec.qmax)
    return QParams(np.asarray(scale, dtype=np.float32), np.asarray(zero).astype(spec.dtype.dtype), spec)


def legal_scale(scale: np.ndarray | float, spec: TensorSpec) -> np.ndarray:
    """The least scale that ``spec`` allows and that covers as much as ``scale``, float64 of the same shape."""
    scale = np.maximum(np.asarray(scale, dtype=np.float64), np.float64(SCALE_FLOOR))
    if not spec.power_of_two:
        return scale
    # A scale that is a power of two but for the last bits of float32 stays that power.
    return np.exp2(np.ceil(np.log2(scale) - 2.0**-22))


def split_scale(scale: np.ndarray, granularity: PerBlock) -> tuple[np.ndarray, np.ndarray]:
    """Scales of blocks with ``scale_bits``, as integers uint8 ``[blocks, N]`` times floats per channel ``[N]``.

    ``scale`` is such a product already: the largest integer of each channel is ``2^scale_bits - 1``,
    and the float has so few bits that the product is exact (see ``edgeq.stages.choose.weights``).
    """
    assert granularity.scale_bits is not None
    channel = (scale.max(axis=granularity.axis) / np.float32((1 << granularity.scale_bits) - 1)).astype(np.float32)
    steps = np.rint(scale / np.expand_dims(channel, granularity.axis))
    return steps.astype(np.uint8), channel


def pack(levels: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned levels, uint8 ``[..., n]``, to bytes ``[..., ceil(n * bits / 8)]``: the first in the lowest bits.

    Levels beyond the last are 0.
    """
    per_byte = 8 // bits
    padding = [(0, 0)] * (levels.ndim - 1) + [(0, -levels.shape[-1] % per_byte)]
    groups = np.pad(levels, padding).reshape(*levels.shape[:-1], -1, per_byte)
    packed = np.zeros(groups.shape[:-1], np.uint8)
    for position in range(per_byte):
        packed |= groups[..., position] << np.uint8(bits * position)
    return packed
