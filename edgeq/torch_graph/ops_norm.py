"""Normalizations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

from edgeq.torch_graph.operators import Call, axis_of, operator

__all__ = ()


def _per_channel(parameter: Tensor, rank: int) -> Tensor:
    """``[C]`` for a tensor ``[N, C, ...]``."""
    return parameter.reshape(-1, *[1] * (rank - 2))


def _check_batch_norm(call: Call) -> str | None:
    return "training mode is not supported" if call.integer("training_mode", 0) or sum(call.outputs) > 1 else None


@operator("BatchNormalization", check=_check_batch_norm)
def _batch_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    factor = scale * torch.rsqrt(variance + call.number("epsilon", 1e-5))
    if x.ndim == 1:
        return torch.addcmul(bias - mean * factor, x, factor)
    return torch.addcmul(_per_channel(bias - mean * factor, x.ndim), x, _per_channel(factor, x.ndim))


@operator("LayerNormalization")
def _layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
    axis, epsilon = axis_of(call.integer("axis", -1), x.ndim), call.number("epsilon", 1e-5)
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        result = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        result = F.layer_norm(x, shape, None, None, epsilon) * scale
        result = result if bias is None else result + bias
    if sum(call.outputs) == 1:
        return result
    axes = tuple(range(axis, x.ndim))
    mean = x.mean(axes, keepdim=True)
    return result, mean, torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)


@operator("RMSNormalization")
def _rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    axes = tuple(range(axis_of(call.integer("axis", -1), x.ndim), x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + call.number("epsilon", 1e-5)) * scale


@operator("InstanceNormalization")
def _instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    axes = tuple(range(2, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    factor = torch.rsqrt(centred.square().mean(axes, keepdim=True) + call.number("epsilon", 1e-5))
    return centred * factor * _per_channel(scale, x.ndim) + _per_channel(bias, x.ndim)


@operator("GroupNormalization")
def _group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = call.integer("num_groups", 1)
    if call.opset < 21:  # one number per group there
        scale, bias = (p.repeat_interleave(x.shape[1] // groups) for p in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.number("epsilon", 1e-5))


@operator("LRN")
def _lrn(call: Call, x: Tensor) -> Tensor:
    size = call.integer("size", 1)
    before = (size - 1) // 2
    square = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    total = sum((square.narrow(1, k, x.shape[1]) for k in range(1, size)), square.narrow(1, 0, x.shape[1]))
    return x / (call.number("bias", 1.0) + call.number("alpha", 1e-4) / size * total) ** call.number("beta", 0.75)


@operator("LpNormalization")
def _lp_norm(call: Call, x: Tensor) -> Tensor:
    axis = call.integer("axis", -1)
    norm = x.abs().sum(axis, keepdim=True) if call.integer("p", 2) == 1 else x.norm(dim=axis, keepdim=True)
    return torch.where(norm == 0, 0.0, x / norm)


@operator("MeanVarianceNormalization")
def _mvn(call: Call, x: Tensor) -> Tensor:
    axes = call.integers("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt(centred.square().mean(axes, keepdim=True)) + 1e-9)
