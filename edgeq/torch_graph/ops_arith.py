"""Elementwise operators: arithmetic, activations, comparisons, casts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

from edgeq.torch_graph.dtypes import INTEGER_RANGES, STORAGE
from edgeq.torch_graph.operators import Call, integers, operator

__all__ = ()


def _plain(function: Callable[..., Tensor], *names: str) -> None:
    """Register a torch function that takes the node's inputs and no attributes."""
    operator(*names)(lambda _, *inputs: function(*inputs))


for _name in ("Abs", "Ceil", "Erf", "Exp", "Floor", "Log", "Neg", "Reciprocal", "Round", "Sigmoid", "Sign", "Sqrt"):
    _plain(getattr(torch, _name.lower()), _name)
for _name in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Tanh"):
    for _prefix in ("", "A"):  # Sin and Asin, ...
        _plain(getattr(torch, (_prefix + _name).lower()), (_prefix + _name).capitalize())
_plain(torch.add, "Add")
_plain(torch.sub, "Sub")
_plain(torch.mul, "Mul")
_plain(torch.eq, "Equal")
_plain(torch.gt, "Greater")
_plain(torch.ge, "GreaterOrEqual")
_plain(torch.lt, "Less")
_plain(torch.le, "LessOrEqual")
_plain(torch.logical_and, "And")
_plain(torch.logical_or, "Or")
_plain(torch.logical_xor, "Xor")
_plain(torch.logical_not, "Not")
_plain(torch.bitwise_and, "BitwiseAnd")
_plain(torch.bitwise_or, "BitwiseOr")
_plain(torch.bitwise_xor, "BitwiseXor")
_plain(torch.isnan, "IsNaN")
_plain(torch.where, "Where")
_plain(torch.relu, "Relu")
_plain(F.softsign, "Softsign")
_plain(F.mish, "Mish")


@operator("Identity")
def _identity(_: Call, x: Tensor) -> Tensor:
    return x


@operator("Div")
def _div(_: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if call.integer("fmod", 0) else torch.remainder(a, b)


@operator("Pow")
def _pow(_: Call, base: Tensor, exponent: Tensor) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


@operator("Max")
def _max(_: Call, *inputs: Tensor) -> Tensor:
    return reduce(torch.maximum, inputs)


@operator("Min")
def _min(_: Call, *inputs: Tensor) -> Tensor:
    return reduce(torch.minimum, inputs)


@operator("Sum")
def _sum(_: Call, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs)


@operator("Mean")
def _mean(_: Call, *inputs: Tensor) -> Tensor:
    return reduce(torch.add, inputs) / len(inputs)


@operator("IsInf")
def _is_inf(call: Call, x: Tensor) -> Tensor:
    result = torch.zeros_like(x, dtype=torch.bool)
    if call.integer("detect_positive", 1):
        result = result | torch.isposinf(x)
    return result | torch.isneginf(x) if call.integer("detect_negative", 1) else result


@operator("BitwiseNot")
def _bitwise_not(call: Call, x: Tensor) -> Tensor:
    wide = {ir.DataType.UINT16: 16, ir.DataType.UINT32: 32}.get(call.types[0] or ir.DataType.UNDEFINED)
    return torch.bitwise_not(x) if wide is None else (1 << wide) - 1 - x


@operator("BitShift")
def _bit_shift(call: Call, x: Tensor, by: Tensor) -> Tensor:
    return torch.bitwise_left_shift(x, by) if call.text("direction", "") == "LEFT" else torch.bitwise_right_shift(x, by)


@operator("Clip")
def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if low is not None or high is not None:
        return torch.clamp(x, low, high)
    if call.has("min") or call.has("max"):  # opset 6
        return torch.clamp(x, call.number("min", -math.inf), call.number("max", math.inf))
    return x


@operator("LeakyRelu")
def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return F.leaky_relu(x, call.number("alpha", 0.01))


@operator("PRelu")
def _prelu(_: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def _elu(call: Call, x: Tensor) -> Tensor:
    return F.elu(x, call.number("alpha", 1.0))


@operator("Celu")
def _celu(call: Call, x: Tensor) -> Tensor:
    return F.celu(x, call.number("alpha", 1.0))


@operator("Selu")
def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.number("alpha", 1.67326319217681884765625), call.number("gamma", 1.05070102214813232421875)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


@operator("ThresholdedRelu")
def _thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.number("alpha", 1.0), x, 0.0)


@operator("Shrink")
def _shrink(call: Call, x: Tensor) -> Tensor:
    edge, bias = call.number("lambd", 0.5), call.number("bias", 0.0)
    shrunk = torch.where(x > edge, x - bias, torch.zeros_like(x))
    return torch.where(x < -edge, x + bias, shrunk).to(x.dtype)


@operator("Softplus")
def _softplus(_: Call, x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("HardSigmoid")
def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.number("alpha", 0.2) * x + call.number("beta", 0.5), 0.0, 1.0)


@operator("HardSwish")
def _hard_swish(_: Call, x: Tensor) -> Tensor:
    return F.hardswish(x)


@operator("Swish")
def _swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.number("alpha", 1.0) * x)


@operator("Gelu")
@operator("Gelu", domain="com.microsoft")
def _gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=call.text("approximate", "none"))


@operator("FastGelu", domain="com.microsoft")
def _fast_gelu(_: Call, x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@operator("QuickGelu", domain="com.microsoft")
def _quick_gelu(call: Call, x: Tensor) -> Tensor:
    return x * torch.sigmoid(call.number("alpha", 1.702) * x)


def _over_axis(call: Call, x: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Softmax and its kin: along one axis since opset 13, before over all axes from ``axis`` on."""
    if call.opset >= 13:
        return function(x, call.integer("axis", -1))
    axis = call.integer("axis", 1) % x.ndim
    return function(x.reshape(math.prod(x.shape[:axis]), -1), -1).reshape(x.shape)


@operator("Softmax")
def _softmax(call: Call, x: Tensor) -> Tensor:
    return _over_axis(call, x, torch.softmax)


@operator("LogSoftmax")
def _log_softmax(call: Call, x: Tensor) -> Tensor:
    return _over_axis(call, x, torch.log_softmax)


@operator("Hardmax")
def _hardmax(call: Call, x: Tensor) -> Tensor:
    return _over_axis(call, x, lambda y, axis: torch.zeros_like(y).scatter(axis, y.argmax(axis, keepdim=True), 1.0))


def _check_dropout(call: Call) -> str | None:
    return "training mode is not supported" if len(call.types) > 2 and call.types[2] is not None else None


@operator("Dropout", check=_check_dropout, host=(1, 2))
def _dropout(_: Call, x: Tensor, _ratio: Tensor | None = None, training: Tensor | None = None) -> tuple[Tensor, ...]:
    if training is not None and bool(training):
        raise ValueError("training mode is not supported")
    return x, torch.ones_like(x, dtype=torch.bool)


def _check_cast(call: Call) -> str | None:
    target = ir.DataType(call.integer("to", 0)) if call.has("to") else None
    return f"no torch type for {target.name}" if target is not None and target not in STORAGE else None


_T = ir.DataType
_WIDENED = frozenset({_T.INT2, _T.INT4, _T.UINT2, _T.UINT4, _T.UINT16, _T.UINT32})
"""Types held in a wider one of torch."""


def cast(x: Tensor, target: ir.DataType) -> Tensor:
    """``x`` in the torch type that holds ``target``; integers outside its range wrap, as in C."""
    storage = STORAGE[target]
    if target in _WIDENED and x.dtype is not torch.bool:
        low, high = INTEGER_RANGES[target]
        return (torch.remainder(x.to(torch.int64) - low, high - low + 1) + low).to(storage)
    return x.to(storage)


@operator("Cast", check=_check_cast)
def _cast(call: Call, x: Tensor) -> Tensor:
    return cast(x, ir.DataType(call.integer("to", 1)))


@operator("CastLike")
def _cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    target = call.types[1]
    return x.to(like.dtype) if target is None else cast(x, target)


@operator("CumSum", host=(1,))
def _cum_sum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    (dim,) = integers(axis)
    ordered = x.flip(dim) if call.integer("reverse", 0) else x
    result = ordered.cumsum(dim).to(x.dtype)
    if call.integer("exclusive", 0):
        result = result - ordered
    return result.flip(dim) if call.integer("reverse", 0) else result
