"""Pooling."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

from edgeq.torch_graph.operators import Call, operator
from edgeq.torch_graph.ops_linear import flat_pads, window_pads

__all__ = ()

_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _window(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Kernel, strides, dilations, pads ``[begin..., end...]``, and what the last window of each axis lacks."""
    kernel = call.integers("kernel_shape")
    rank, sizes = len(kernel), list(x.shape[2:])
    strides, dilations = call.integers("strides", [1] * rank), call.integers("dilations", [1] * rank)
    pads = window_pads(call, sizes, kernel, strides, dilations)
    lacking = []
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        padded = sizes[axis] + pads[axis] + pads[axis + rank]
        steps = padded - reach
        count = (-(-steps // strides[axis]) if call.integer("ceil_mode", 0) else steps // strides[axis]) + 1
        # A window that would start in the padding at the end is dropped.
        if call.integer("ceil_mode", 0) and (count - 1) * strides[axis] >= sizes[axis] + pads[axis]:
            count -= 1
        lacking.append(max((count - 1) * strides[axis] + reach - padded, 0))
    return kernel, strides, dilations, pads, lacking


def _widened(pads: list[int], lacking: list[int]) -> list[int]:
    rank = len(lacking)
    return flat_pads(pads[:rank] + [p + extra for p, extra in zip(pads[rank:], lacking, strict=True)])


def _check_max_pool(call: Call) -> str | None:
    if sum(call.outputs) > 1:
        return "the output Indices is not supported"
    return _check_rank(call)


def _check_rank(call: Call) -> str | None:
    rank = len(call.integers("kernel_shape"))
    return f"no pooling over {rank} axes" if rank > 3 else None


@operator("MaxPool", check=_check_max_pool)
def _max_pool(call: Call, x: Tensor) -> Tensor:
    kernel, strides, dilations, pads, lacking = _window(call, x)
    if not x.is_floating_point():
        return _max_pool(call, x.to(torch.float64)).to(x.dtype)  # type: ignore[union-attr]
    if any(pads) or any(lacking):
        x = F.pad(x, _widened(pads, lacking), value=-math.inf)
    return _MAX_POOL[len(kernel)](x, kernel, strides, 0, dilations)


@operator("AveragePool", check=_check_rank)
def _average_pool(call: Call, x: Tensor) -> Tensor:
    kernel, strides, dilations, pads, lacking = _window(call, x)
    if not any(pads) and not any(lacking):
        return _mean_window(x, kernel, strides, dilations)
    counted = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if call.integer("count_include_pad", 0):  # zeros of the padding count, what the last window lacks never does
        counted = F.pad(counted, flat_pads(pads), value=1.0)
        counted = F.pad(counted, _widened([0] * len(pads), lacking))
    else:
        counted = F.pad(counted, _widened(pads, lacking))
    total = _mean_window(F.pad(x, _widened(pads, lacking)), kernel, strides, dilations)
    return total / _mean_window(counted, kernel, strides, dilations)


def _mean_window(x: Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> Tensor:
    if all(d == 1 for d in dilations):
        return _AVERAGE_POOL[len(kernel)](x, kernel, strides)
    ones = torch.full((1, 1, *kernel), 1 / math.prod(kernel), dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    result = conv(flat, ones, None, strides, 0, dilations)
    return result.reshape(*x.shape[:2], *result.shape[2:])


@operator("GlobalAveragePool")
def _global_average_pool(_: Call, x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(_: Call, x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.ndim)), keepdim=True)
