"""QuantizeLinear and its kin: whole numbers in float32 between Q and DQ, so that gradients pass."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor

from edgeq.qtypes import Granularity, PerAxis, PerBlock, PerTensor
from edgeq.torch_graph.dtypes import INTEGER_RANGES
from edgeq.torch_graph.fake_quant import expand, quantize_levels
from edgeq.torch_graph.operators import Call, operator

__all__ = ()


def _granularity(call: Call, scale: Tensor, x: Tensor) -> Granularity:
    axis = call.integer("axis", 1)
    if call.integer("block_size", 0):
        return PerBlock(axis % x.ndim, call.integer("block_size", 0))
    return PerTensor() if scale.numel() == 1 else PerAxis(axis % x.ndim)


def _spread(call: Call, scale: Tensor, zero: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32, as they broadcast to ``x``."""
    granularity = _granularity(call, scale, x)
    if isinstance(granularity, PerTensor):
        scale = scale.reshape(())
    zeros = torch.zeros_like(scale) if zero is None else zero.to(torch.float32).reshape(scale.shape)
    return expand(scale, granularity, x.shape), expand(zeros, granularity, x.shape)


def _level_type(call: Call) -> ir.DataType | None:
    if len(call.types) > 2 and call.types[2] is not None:
        return call.types[2]
    return ir.DataType(call.integer("output_dtype", 0) or int(ir.DataType.UINT8))


def _check_quantize(call: Call) -> str | None:
    if call.integer("precision", 0) not in (0, 1):
        return "only the precision of float32 is supported"
    if call.types[0] not in (None, ir.DataType.FLOAT):
        return f"quantizes {call.types[0]}, not float32"
    return None if _level_type(call) in INTEGER_RANGES else f"no integers of type {_level_type(call)}"


@operator("QuantizeLinear", check=_check_quantize)
@operator("QuantizeLinear", check=_check_quantize, domain="com.microsoft")
def _quantize(call: Call, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    level_type = _level_type(call)
    assert level_type is not None
    spread, zeros = _spread(call, scale, zero, x)
    return quantize_levels(x, spread, zeros, *INTEGER_RANGES[level_type])


def _check_dequantize(call: Call) -> str | None:
    if call.types[0] is not None and call.types[0] not in INTEGER_RANGES:
        return f"dequantizes {call.types[0]}"
    if call.types[1] not in (None, ir.DataType.FLOAT):
        return f"dequantizes to {call.types[1]}, not float32"
    return None


@operator("DequantizeLinear", check=_check_dequantize)
@operator("DequantizeLinear", check=_check_dequantize, domain="com.microsoft")
def _dequantize(call: Call, levels: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    spread, zeros = _spread(call, scale, zero, levels)
    return (levels.to(torch.float32) - zeros) * spread


@operator("DynamicQuantizeLinear")
def _dynamic_quantize(_: Call, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.clamp(x.amin(), max=0.0), torch.clamp(x.amax(), min=0.0)
    scale = (high - low) / 255
    zero = torch.clamp(torch.round(-low / scale), 0, 255).detach()
    return quantize_levels(x, scale, zero, 0, 255), scale, zero
