"""Scales of constant weights: symmetric, per tensor, channel or block, with the least squared error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeq.affine import SCALE_FLOOR, blocks, fake_quantize, legal_scale
from edgeq.qtypes import PerAxis, PerBlock, PerTensor, QParams, TensorSpec

__all__ = ["weight_qparams"]

_CHUNK = 1 << 18
"""Rows are searched in chunks of about this many elements, so that memory does not grow with the model."""


def weight_qparams(weight: np.ndarray, spec: TensorSpec, *, clip: bool = True) -> QParams:
    """The symmetric scale per tensor, channel or block that loses least of ``weight``.

    With ``clip`` the scale minimizes the squared error; candidates are the largest magnitude, the
    fixed point of OCTAV's Newton step (Sakr et al. 2022, arXiv 2206.06501, equation 5) and a few
    multiples of each, measured exactly; powers of two are tried downwards from the one that clips
    nothing. Without, the largest magnitude decides.
    """
    if not spec.symmetric:
        raise ValueError("weights are quantized symmetrically")
    rows, shape = _rows(weight, spec)
    top = _levels(spec)
    step = max(1, _CHUNK // rows.shape[1])
    scales = [_row_scales(rows[i : i + step], spec, top, clip) for i in range(0, len(rows), step)]
    found = np.concatenate(scales)
    if isinstance(spec.granularity, PerAxis):
        found = _lend(found)
    scale = np.maximum(found.reshape(shape), SCALE_FLOOR).astype(np.float32)
    if isinstance(spec.granularity, PerBlock) and spec.granularity.scale_bits is not None:
        scale = _integer_scales(rows, scale, spec, spec.granularity)
    return QParams(scale, np.full(shape, spec.middle).astype(spec.dtype.dtype), spec)


def _lend(scale: np.ndarray) -> np.ndarray:
    """A channel of nothing but zeros has no scale of its own, and takes the largest of the others'.

    With the smallest possible one, Qualcomm's v68 and v69 compute the lowest level in place of zero beside
    16-bit activations (measured on silero-vad, whose first convolution has two such channels).
    """
    return np.where(scale > SCALE_FLOOR, scale, scale.max(initial=0.0))


def _levels(spec: TensorSpec) -> int:
    """Largest magnitude in steps: 127 for 8 bits (63 if one is left unused), both signs alike."""
    return spec.qmax - spec.middle


def _rows(weight: np.ndarray, spec: TensorSpec) -> tuple[np.ndarray, tuple[int, ...]]:
    """``[scales, elements]`` and the shape that the scale takes."""
    granularity = spec.granularity
    if isinstance(granularity, PerTensor):
        return weight.reshape(1, -1), ()
    if isinstance(granularity, PerAxis):
        moved = np.moveaxis(weight, granularity.axis, 0)
        return moved.reshape(len(moved), -1), (len(moved),)
    assert isinstance(granularity, PerBlock)
    blocked = blocks(weight, granularity)
    return blocked.reshape(-1, granularity.size), blocked.shape[:-1]


def _row_scales(rows: np.ndarray, spec: TensorSpec, top: int, clip: bool) -> np.ndarray:
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1) / np.float32(top)
    if spec.power_of_two:
        largest = legal_scale(largest, spec).astype(np.float32)
    if not clip:
        return largest
    best, best_error = largest, np.full(len(rows), np.inf)
    row_spec = replace(spec, granularity=PerAxis(0))
    middle = np.full(len(rows), spec.middle).astype(spec.dtype.dtype)
    candidates = _exponents(largest) if spec.power_of_two else _candidates(magnitudes, largest, spec)
    for candidate in candidates:
        scale = np.maximum(candidate, SCALE_FLOOR).astype(np.float32)
        error = np.square(rows - fake_quantize(rows, QParams(scale, middle, row_spec))).sum(axis=1)
        better = error < best_error
        best, best_error = np.where(better, scale, best), np.where(better, error, best_error)
    return best


def _candidates(magnitudes: np.ndarray, largest: np.ndarray, spec: TensorSpec) -> list[np.ndarray]:
    bits = spec.dtype.bits - spec.reduced
    octav = _octav(magnitudes, bits) / np.float32(_levels(spec))
    fractions = (1.0, 0.95, 0.9, 1.05) if spec.dtype.bits >= 8 else np.linspace(0.6, 1.3, 15)
    return [largest, *(np.minimum(octav * np.float32(f), largest) for f in fractions)]


def _exponents(largest: np.ndarray) -> list[np.ndarray]:
    """The power of two that clips nothing, and the next three: a step less costs clipping, and halves rounding."""
    return [largest * np.float32(0.5**step) for step in range(4)]


def _octav(magnitudes: np.ndarray, bits: int, iterations: int = 8) -> np.ndarray:
    """Clipping value per row: the fixed point of OCTAV's step.

    ``s <- E[|x| 1(|x| > s)] / ((4^-B / 3) P(0 < |x| <= s) + P(|x| > s))``.
    """
    clip = magnitudes.mean(axis=1) * 3
    for _ in range(iterations):
        outside = magnitudes > clip[:, None]
        count = np.count_nonzero(outside, axis=1)
        total = np.where(outside, magnitudes, 0).sum(axis=1)
        inside = np.count_nonzero(magnitudes, axis=1) - count
        clip = total / np.maximum(4.0**-bits / 3 * inside + count, 1e-30)
    return np.where(clip > 0, clip, magnitudes.max(axis=1)).astype(np.float32)


def _integer_scales(rows: np.ndarray, scale: np.ndarray, spec: TensorSpec, granularity: PerBlock) -> np.ndarray:
    """LPBQ: scales of blocks as integers times a float per channel, the integer with the least squared error.

    The channel's float makes its largest scale the largest integer, and is rounded to 16 bits of
    mantissa, so that the products are exact in float32. Blockwise quantization of that form is
    described in the documentation of AIMET (Qualcomm): "Low power blockwise quantization".
    """
    assert granularity.scale_bits is not None
    most = (1 << granularity.scale_bits) - 1
    mantissa, exponent = np.frexp(scale.max(axis=granularity.axis, keepdims=True) / most)
    channel = np.ldexp(np.rint(mantissa * 2.0**16) / 2.0**16, exponent).astype(np.float32)
    row_spec, best_error = replace(spec, granularity=PerAxis(0)), np.full(scale.shape, np.inf)
    middle, best = np.full(scale.size, spec.middle).astype(spec.dtype.dtype), scale
    for step in range(1, most + 1):
        candidate = np.broadcast_to(channel * np.float32(step), scale.shape).astype(np.float32)
        error = np.square(rows - fake_quantize(rows, QParams(candidate.reshape(-1), middle, row_spec))).sum(axis=1)
        error = error.reshape(scale.shape)
        # The block with the largest scale keeps it: the integers are recovered from it.
        better = (error < best_error) & ((scale < scale.max(axis=granularity.axis, keepdims=True)) | (step == most))
        best, best_error = np.where(better, candidate, best), np.where(better, error, best_error)
    return best
