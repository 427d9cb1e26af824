"""Quantize and dequantize with gradients: the straight-through estimator, and learned scales.

Forward it is edgeq.affine bit for bit: float32, division by the scale, round half to even.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeq.affine import SCALE_FLOOR
from edgeq.qtypes import Granularity, PerAxis, PerTensor, QParams

__all__ = ["LearnedScale", "expand", "fake_quantize", "quantize_levels"]


def expand(parameter: Tensor, granularity: Granularity, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Broadcast a scale or zero point to a tensor of ``shape``, as ``edgeq.affine.expand`` does, with gradients."""
    if isinstance(granularity, PerTensor):
        return parameter
    if isinstance(granularity, PerAxis):
        view = [1] * len(shape)
        view[granularity.axis] = -1
        return parameter.reshape(view)
    axis = granularity.axis % len(shape)
    return parameter.repeat_interleave(granularity.size, dim=axis).narrow(axis, 0, shape[axis])


class _Levels(torch.autograd.Function):
    """``clip(round(x / s) + z, qmin, qmax)`` with the gradients of LSQ, x, s and z already broadcastable.

    Inside the range rounding counts as the identity; outside, nothing reaches x. Together with
    ``(levels - z) * s`` the scale's gradient is eq. 3 of Esser et al. 2020 (arXiv 1902.08153), and the zero
    point's eq. 8 of LSQ+ (Bhalgat et al. 2020, arXiv 2004.09576).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, zero: Tensor, qmin: int, qmax: int) -> Tensor:
        return torch.clamp(torch.round(x / scale) + zero, qmin, qmax)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        x, scale, zero, ctx.qmin, ctx.qmax = inputs
        ctx.save_for_backward(x, scale, zero)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale, zero = ctx.saved_tensors
        place = x / scale
        inside = (place + zero > ctx.qmin) & (place + zero < ctx.qmax)
        through = torch.where(inside, gradient, 0.0)
        to_x = through / scale if ctx.needs_input_grad[0] else None
        to_scale = _sum_to(-through * place / scale, scale) if ctx.needs_input_grad[1] else None
        to_zero = _sum_to(through, zero) if ctx.needs_input_grad[2] else None
        return to_x, to_scale, to_zero, None, None


def _sum_to(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.sum_to_size(like.shape)


def quantize_levels(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """The integers, as floats of ``x``'s shape; ``scale`` and ``zero_point`` are broadcastable to it."""
    return _Levels.apply(x, scale, zero_point.to(x.dtype), qmin, qmax)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    granularity: Granularity | None = None,
) -> Tensor:
    """What the integers ``qmin`` .. ``qmax`` can say of ``x``: ``dequantize(quantize(x))``, with gradients.

    Args:
        x: Float32 of any shape.
        scale: Float32, positive. In the shape that ``granularity`` asks for, or broadcastable to ``x``.
        zero_point: Of ``scale``'s shape; integers, or floats that may have a gradient.
        qmin: Lowest level.
        qmax: Highest level.
        granularity: How scale and zero point lie on ``x``; None where they broadcast by themselves.

    The gradient passes ``x`` unchanged where ``qmin < x / scale + zero_point < qmax`` and is 0 elsewhere; those
    of the scale and of the zero point are LSQ's and LSQ+'s, without LSQ's factor (see ``LearnedScale``).
    """
    zero = zero_point.to(x.dtype)
    if granularity is not None:
        scale, zero = expand(scale, granularity, x.shape), expand(zero, granularity, x.shape)
    return (quantize_levels(x, scale, zero, qmin, qmax) - zero) * scale


class _Step(torch.autograd.Function):
    """A scale, at least ``SCALE_FLOOR``, whose gradient is multiplied by a factor."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scale: Tensor, _factor: float) -> Tensor:
        return torch.clamp(scale, min=float(SCALE_FLOOR))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] * ctx.factor, None


class LearnedScale(nn.Module):
    """A fake quantizer whose scale is learned (LSQ, Esser et al. 2020, arXiv 1902.08153).

    The gradient of the scale is multiplied by ``1 / sqrt(N * Q_P)`` (section 2.2): N is the number of elements
    that share a scale, batch excluded for activations, and Q_P the number of levels above the zero point (for
    asymmetric types on its longer side). The scale never falls below ``SCALE_FLOOR``.

    Args:
        qparams: Where to start; its zero point stays as it is.
        batched: The first axis of what is quantized counts samples (an activation, not a weight).
    """

    zero_point: Tensor

    def __init__(self, qparams: QParams, *, batched: bool) -> None:
        super().__init__()
        self.spec = qparams.spec
        self.batched = batched
        self.scale = nn.Parameter(torch.from_numpy(np.array(qparams.scale)))
        self.register_buffer("zero_point", torch.from_numpy(np.array(qparams.zero_point, dtype=np.float32)))
        zero = np.asarray(qparams.zero_point, dtype=np.float64)
        below = 0 if self.spec.symmetric else zero - self.spec.qmin
        self._positive = float(np.maximum(self.spec.qmax - zero, below).max())

    def forward(self, x: Tensor) -> Tensor:
        """``x``, fake-quantized with the present scale."""
        shared = x.numel() / self.scale.numel() / (x.shape[0] if self.batched else 1)
        factor = (shared * self._positive) ** -0.5
        scale = _Step.apply(self.scale, factor)
        spec = self.spec
        return fake_quantize(x, scale, self.zero_point, spec.qmin, spec.qmax, spec.granularity)

    @torch.no_grad()
    def qparams(self) -> QParams:
        """Scale and zero point as they are now."""
        scale = np.maximum(self.scale.detach().cpu().numpy(), SCALE_FLOOR)
        zero = self.zero_point.cpu().numpy().astype(self.spec.dtype.dtype)
        return QParams(scale.astype(np.float32).reshape(zero.shape), zero, self.spec)
