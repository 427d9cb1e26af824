"""Operators with weights: MatMul, Gemm, Einsum, Conv, ConvTranspose."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

from edgeq.torch_graph.operators import Call, operator

__all__ = ["flat_pads", "window_pads"]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("MatMul")
def _matmul(_: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.transpose(0, 1) if call.integer("transA", 0) else a
    b = b.transpose(0, 1) if call.integer("transB", 0) else b
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    if not a.is_floating_point():
        alpha, beta = int(alpha), int(beta)
    if c is None:
        return torch.mm(a, b) if alpha == 1 else torch.mm(a, b) * alpha
    return torch.addmm(c, a, b, beta=beta, alpha=alpha)


@operator("Einsum")
def _einsum(call: Call, *inputs: Tensor) -> Tensor:
    return torch.einsum(call.text("equation", "").replace(" ", ""), *inputs)


def window_pads(call: Call, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """``[begin..., end...]`` of a sliding window, from ``pads`` or ``auto_pad``."""
    mode = call.text("auto_pad", "NOTSET")
    rank = len(sizes)
    if mode == "NOTSET":
        return call.integers("pads", [0] * (2 * rank))
    if mode == "VALID":
        return [0] * (2 * rank)
    begin, end = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        half, rest = total // 2, total - total // 2
        begin.append(half if mode == "SAME_UPPER" else rest)
        end.append(rest if mode == "SAME_UPPER" else half)
    return begin + end


def flat_pads(pads: list[int]) -> list[int]:
    """``[begin..., end...]`` as torch's pad wants it: pairs, the last axis first."""
    rank = len(pads) // 2
    return [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]


def _check_rank(call: Call) -> str | None:
    rank = len(call.integers("kernel_shape") or call.integers("strides"))
    return f"no convolution over {rank} axes" if rank > 3 else None


@operator("Conv", check=_check_rank)
def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    strides, dilations = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    pads = window_pads(call, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    if pads[:rank] != pads[rank:]:
        x, pads = F.pad(x, flat_pads(pads)), [0] * (2 * rank)
    return _CONV[rank](x, weight, bias, strides, pads[:rank], dilations, call.integer("group", 1))


@operator("ConvTranspose", check=_check_rank)
def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = x.ndim - 2
    strides, dilations = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    extra = call.integers("output_padding", [0] * rank)
    group = call.integer("group", 1)
    full = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, group, dilations)
    begin, end = _cut(call, list(x.shape[2:]), list(full.shape[2:]), strides, extra)
    # Cropped at the end less than `extra`, the result is padded there: those outputs see no input, only the bias.
    result = F.pad(full, flat_pads([-b for b in begin] + [o - e for o, e in zip(extra, end, strict=True)]))
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def _cut(
    call: Call, sizes: list[int], full: list[int], strides: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """How much of a transposed convolution's full result each side loses."""
    rank = len(sizes)
    mode = call.text("auto_pad", "NOTSET")
    wanted = call.integers("output_shape")[-rank:] if call.has("output_shape") else None
    if wanted is None and mode in ("NOTSET", "VALID"):
        pads = call.integers("pads", [0] * (2 * rank)) if mode == "NOTSET" else [0] * (2 * rank)
        return pads[:rank], pads[rank:]
    if wanted is None:
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    begin, end = [], []
    for f, w, o in zip(full, wanted, extra, strict=True):
        total = max(f + o - w, 0)
        half, rest = total // 2, total - total // 2
        begin.append(half if mode == "SAME_UPPER" else rest)
        end.append(f + o - w - begin[-1])  # negative where more is wanted than there is
    return begin, end
