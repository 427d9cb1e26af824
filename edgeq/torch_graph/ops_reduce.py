"""Reductions and what orders elements: Reduce*, ArgMax, ArgMin, TopK."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from edgeq.torch_graph.operators import Call, axes_of, integers, operator

__all__ = ()

_Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduction(name: str, function: _Reduction) -> None:
    """Register a reduction over some axes; with none given it goes over all, or over none where the node says so."""

    @operator(name, host=(1,))
    def reduce(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = axes_of(call, given)
        if not axes:
            if call.integer("noop_with_empty_axes", 0):
                return (
                    x
                    if name in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")
                    else (function(x.unsqueeze(-1), (-1,), False))
                )
            axes = list(range(x.ndim))
        return function(x, tuple(sorted(a % x.ndim for a in axes)), bool(call.integer("keepdims", 1)))


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep).to(x.dtype)
    return x


def _extreme(function: Callable[..., Tensor], empty: float) -> _Reduction:
    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if x.numel() == 0:
            edge = empty if x.is_floating_point() else _edge(x.dtype, empty > 0)
            return torch.full_like(x.sum(axes, keepdim=keep), edge, dtype=x.dtype)
        return function(x, axes, keepdim=keep) if axes else x

    return reduce


def _edge(dtype: torch.dtype, highest: bool) -> int:
    """The lowest or highest number of an integer type."""
    if dtype is torch.bool:
        return int(highest)
    return torch.iinfo(dtype).max if highest else torch.iinfo(dtype).min


_reduction("ReduceSum", lambda x, axes, keep: x.sum(axes, keepdim=keep).to(x.dtype))
_reduction(
    "ReduceMean",
    lambda x, axes, keep: (
        x.mean(axes, keepdim=keep)
        if x.is_floating_point()
        else torch.div(x.sum(axes, keepdim=keep), math.prod(x.shape[a] for a in axes), rounding_mode="trunc").to(
            x.dtype
        )
    ),
)
_reduction("ReduceMax", _extreme(torch.amax, -math.inf))
_reduction("ReduceMin", _extreme(torch.amin, math.inf))
_reduction("ReduceProd", _prod)
_reduction("ReduceL1", lambda x, axes, keep: x.abs().sum(axes, keepdim=keep).to(x.dtype))
_reduction("ReduceSumSquare", lambda x, axes, keep: x.square().sum(axes, keepdim=keep).to(x.dtype))
_reduction("ReduceL2", lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep))
_reduction("ReduceLogSum", lambda x, axes, keep: x.sum(axes, keepdim=keep).log())
_reduction("ReduceLogSumExp", lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep))


def _arg(call: Call, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    axis = call.integer("axis", 0)
    keep = bool(call.integer("keepdims", 1))
    if call.integer("select_last_index", 0):
        return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)
    return function(x, axis, keepdim=keep)


@operator("ArgMax")
def _arg_max(call: Call, x: Tensor) -> Tensor:
    return _arg(call, x, torch.argmax)


@operator("ArgMin")
def _arg_min(call: Call, x: Tensor) -> Tensor:
    return _arg(call, x, torch.argmin)


@operator("TopK", host=(1,))
def _top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    # A stable sort: of equal elements the one with the lower index comes first.
    axis, (count,) = call.integer("axis", -1), integers(k)
    values, indices = torch.sort(x, dim=axis, descending=bool(call.integer("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
