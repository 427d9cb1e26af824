"""Resize: per axis, each output element is a weighted sum of a few input elements."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

from edgeq.torch_graph.operators import Call, integers, operator

__all__ = ()

_KNOWN = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")


def _check(call: Call) -> str | None:
    mode = call.text("coordinate_transformation_mode", "half_pixel")
    return None if mode in _KNOWN else f"coordinate_transformation_mode {mode!r} is not supported"


@operator("Resize", check=_check, host=(1, 2, 3))
def _resize(
    call: Call, x: Tensor, _roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    axes = [a % x.ndim for a in call.integers("axes", list(range(x.ndim)))]
    lengths = [x.shape[axis] for axis in axes]
    if sizes is not None and sizes.numel():
        targets = integers(sizes)
        factors = [target / length for target, length in zip(targets, lengths, strict=True)]
        policy = call.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(factors)
            targets = [math.floor(factor * length + 0.5) for length in lengths]
    else:
        assert scales is not None
        factors = [float(s) for s in scales.tolist()]
        targets = [math.floor(length * factor) for length, factor in zip(lengths, factors, strict=True)]
    for axis, length, target, factor in zip(axes, lengths, targets, factors, strict=True):
        if target != length or factor != 1:
            x = _resize_axis(call, x, axis, target, factor)
    return x


def _resize_axis(call: Call, x: Tensor, axis: int, target: int, factor: float) -> Tensor:
    """Sum over a few taps, each a choice of input elements times weights."""
    indices, weights = _taps(call, x.shape[axis], target, factor)
    shape = [1] * x.ndim
    shape[axis] = target
    if call.text("mode", "nearest") == "nearest":
        return x.index_select(axis, torch.from_numpy(indices[:, 0]).to(x.device))
    total: Tensor | None = None
    for tap in range(indices.shape[1]):
        chosen = x.index_select(axis, torch.from_numpy(indices[:, tap].copy()).to(x.device))
        weight = torch.from_numpy(weights[:, tap].astype(np.float32)).to(x.device, x.dtype).reshape(shape)
        total = chosen * weight if total is None else total + chosen * weight
    assert total is not None
    return total


def _coordinates(call: Call, length: int, target: int, factor: float) -> np.ndarray:
    """Where each output element lies on the input's axis, float32 as ONNX Runtime computes it."""
    mode = call.text("coordinate_transformation_mode", "half_pixel")
    place, scale = np.arange(target, dtype=np.float32), np.float32(factor)
    if mode == "asymmetric":
        return place / scale
    if mode == "align_corners":
        return place * np.float32(length - 1) / np.float32(target - 1) if target > 1 else np.zeros(1, np.float32)
    if mode == "pytorch_half_pixel" and target == 1:
        return np.zeros(1, np.float32)
    half = np.float32(0.5)
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(target) / (scale * np.float32(length))
        centre = np.float32(length) / 2
        return centre * (1 - adjustment) + (place + half) / scale - half
    return (place + half) / scale - half


def _taps(call: Call, length: int, target: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices int64 and weights, both ``[target, taps]``."""
    place = _coordinates(call, length, target, factor)
    mode = call.text("mode", "nearest")
    if mode == "nearest":
        rounding = call.text("nearest_mode", "round_prefer_floor")
        half = np.float32(0.5 if rounding.startswith("round") else 0)
        rounded = np.ceil(place - half) if rounding in ("round_prefer_floor", "ceil") else np.floor(place + half)
        chosen = np.clip(rounded, 0, length - 1).astype(np.int64)
        return chosen[:, None], np.ones((target, 1))
    # Antialiasing widens the filter by the factor of the reduction.
    shrink = min(factor, 1.0) if call.integer("antialias", 0) else 1.0
    reach = (2 if mode == "cubic" else 1) / shrink
    first = np.floor(place - reach).astype(np.int64) + 1
    indices = first[:, None] + np.arange(math.ceil(2 * reach))
    distance = np.abs(indices - place[:, None].astype(np.float64)) * shrink
    weights = np.maximum(1 - distance, 0) if mode == "linear" else _cubic(distance, call.number("cubic_coeff_a", -0.75))
    if call.integer("exclude_outside", 0):
        weights = np.where((indices >= 0) & (indices < length), weights, 0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    return np.clip(indices, 0, length - 1), weights


def _cubic(d: np.ndarray, a: float) -> np.ndarray:
    """The cubic convolution kernel (Keys 1981, eq. 15) at distances ``d``."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


_GRID_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}


def _check_grid(call: Call) -> str | None:
    return None if call.text("mode", "linear") in (*_GRID_MODES, "bicubic") else "unknown mode"


@operator("GridSample", check=_check_grid)
def _grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    mode = _GRID_MODES.get(call.text("mode", "linear"), "bicubic")
    padding, align = call.text("padding_mode", "zeros"), bool(call.integer("align_corners", 0))
    return F.grid_sample(x, grid, mode, padding, align)
