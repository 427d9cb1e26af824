"""Operators that move, select or make elements, and compute with shapes."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (its usual name)

from edgeq.torch_graph.dtypes import STORAGE
from edgeq.torch_graph.operators import Call, axes_of, axis_of, integers, operator
from edgeq.torch_graph.ops_linear import flat_pads

__all__ = ()


@operator("Shape")
def _shape(call: Call, x: Tensor) -> Tensor:
    start, end = call.integer("start", 0), call.integer("end", x.ndim)
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Size")
def _size(_: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", host=(1,))
def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    sizes = integers(shape)
    if not call.integer("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.integers("perm", list(reversed(range(x.ndim)))))


@operator("Squeeze", host=(1,))
def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = axes_of(call, axes)
    return x.squeeze() if given is None else x.squeeze(tuple(given))


@operator("Unsqueeze", host=(1,))
def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    given = axes_of(call, axes) or []
    for axis in sorted(axis % (x.ndim + len(given)) for axis in given):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def _concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, call.integer("axis", 0))


@operator("Split", host=(1,))
def _split(call: Call, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call.integer("axis", 0)
    if split is not None:
        sizes = integers(split)
    elif call.has("split"):  # opset 11
        sizes = call.integers("split")
    else:
        size = -(-x.shape[axis] // len(call.outputs))
        sizes = [size] * (len(call.outputs) - 1)
        sizes.append(x.shape[axis] - sum(sizes))
    return torch.split(x, sizes, axis)


@operator("Slice", host=(1, 2, 3, 4))
def _slice(
    _: Call, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    begins, stops = integers(starts), integers(ends)
    over = list(range(len(begins))) if axes is None else integers(axes)
    strides = [1] * len(begins) if steps is None else integers(steps)
    for axis, begin, stop, stride in zip(over, begins, stops, strides, strict=True):
        axis %= x.ndim
        chosen = range(*slice(begin, stop, stride).indices(x.shape[axis]))
        if stride == 1:
            x = x.narrow(axis, chosen.start if len(chosen) else 0, len(chosen))
        else:
            x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
    return x


def _from_front(indices: Tensor, length: int) -> Tensor:
    """Indices of which negative ones count from the end."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + length, indices)


@operator("Gather")
def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = axis_of(call.integer("axis", 0), x.ndim)
    chosen = _from_front(indices, x.shape[axis])
    flat = x.index_select(axis, chosen.reshape(-1))
    return flat.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = axis_of(call.integer("axis", 0), x.ndim)
    return torch.gather(x, axis, _from_front(indices, x.shape[axis]))


@operator("GatherND")
def _gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    batch = call.integer("batch_dims", 0)
    depth = indices.shape[-1]
    flat_x = x.reshape(math.prod(x.shape[:batch]), *x.shape[batch:])
    flat_indices = indices.reshape(flat_x.shape[0], -1, depth)
    rows = torch.arange(flat_x.shape[0], device=x.device).reshape(-1, 1)
    places = [_from_front(flat_indices[..., k], flat_x.shape[k + 1]) for k in range(depth)]
    chosen = flat_x[(rows, *places)]
    return chosen.reshape((*indices.shape[:-1], *x.shape[batch + depth :]))


_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("ScatterElements")
def _scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = axis_of(call.integer("axis", 0), x.ndim)
    places = _from_front(indices, x.shape[axis])
    reduction = call.text("reduction", "none")
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _SCATTER[reduction])


@operator("ScatterND")
def _scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    depth = indices.shape[-1]
    inner = math.prod(x.shape[depth:])
    row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for k in range(depth):
        row = row * x.shape[k] + _from_front(indices[..., k], x.shape[k])
    places = row.reshape(-1, 1).expand(-1, inner)
    flat, new = x.reshape(-1, inner), updates.reshape(-1, inner)
    reduction = call.text("reduction", "none")
    if reduction == "none":
        return flat.scatter(0, places, new).reshape(x.shape)
    return flat.scatter_reduce(0, places, new, _SCATTER[reduction]).reshape(x.shape)


@operator("Expand", host=(1,))
def _expand(_: Call, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, tuple(integers(shape))))


@operator("Tile", host=(1,))
def _tile(_: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


_PAD_MODES = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}


@operator("Pad", host=(1, 2, 3))
def _pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    widths = integers(pads) if pads is not None else call.integers("pads")
    over = [a % x.ndim for a in integers(axes)] if axes is not None else list(range(x.ndim))
    begin, end = [0] * x.ndim, [0] * x.ndim
    for place, axis in enumerate(over):
        begin[axis], end[axis] = widths[place], widths[place + len(over)]
    mode = call.text("mode", "constant")
    if mode == "constant":
        fill = value.reshape(-1)[0].item() if value is not None and value.numel() else call.number("value", 0.0)
        return F.pad(x, flat_pads(begin + end), value=fill)
    for axis in range(x.ndim):
        low, high = max(begin[axis], 0), max(end[axis], 0)
        if begin[axis] or end[axis]:
            cut = range(max(-begin[axis], 0), x.shape[axis] - max(-end[axis], 0))
            chosen = np.pad(np.array(cut, dtype=np.int64), (low, high), mode=_PAD_MODES[mode])  # type: ignore[call-overload]
            x = x.index_select(axis, torch.from_numpy(chosen).to(x.device))
    return x


@operator("ConstantOfShape", host=(0,))
def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.tensor("value")
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(integers(shape)).clone()


@operator("Range", host=(0, 1, 2))
def _range(_: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    first, last, step = start.reshape(()).item(), limit.reshape(()).item(), delta.reshape(()).item()
    count = max(math.ceil((last - first) / step), 0)
    return torch.arange(count, dtype=start.dtype) * step + first


@operator("Trilu", host=(1,))
def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else integers(k)[0]
    return torch.triu(x, diagonal) if call.integer("upper", 1) else torch.tril(x, diagonal)


@operator("EyeLike")
def _eye_like(call: Call, x: Tensor) -> Tensor:
    dtype = STORAGE[ir.DataType(call.integer("dtype", 0))] if call.has("dtype") else x.dtype
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return (columns.reshape(1, -1) - rows.reshape(-1, 1) == call.integer("k", 0)).to(dtype)


@operator("OneHot", host=(1,))
def _one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    (count,) = integers(depth)
    axis = call.integer("axis", -1) % (indices.ndim + 1)
    places = _from_front(indices, count)
    hot = places.unsqueeze(axis) == torch.arange(count, device=places.device).reshape(
        [-1 if a == axis else 1 for a in range(indices.ndim + 1)]
    )
    return torch.where(hot, values[1], values[0])


@operator("NonZero")
def _non_zero(_: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x).T


@operator("Compress", host=(1,))
def _compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    chosen = torch.nonzero(condition.cpu()).reshape(-1).to(x.device)
    return x.index_select(call.integer("axis", 0), chosen) if call.has("axis") else x.reshape(-1)[chosen]


@operator("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = call.integer("blocksize", 1)
    if call.text("mode", "DCR") == "DCR":
        parts = x.reshape(n, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // size**2, size, size, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // size**2, h * size, w * size)


@operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    size = call.integer("blocksize", 1)
    parts = x.reshape(n, c, h // size, size, w // size, size)
    parts = parts.permute((0, 3, 5, 1, 2, 4) if call.text("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4))
    return parts.reshape(n, c * size**2, h // size, w // size)
