"""Windows of feature maps: where a part works on every place of a map alike, a piece of it is enough to learn from.

A piece costs less than the whole, so more samples can be seen in the same time. Next to the cut the part sees
padding where the whole map has values, so a margin of the outputs is left out of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from edgeq.torch_graph import TorchGraph

__all__ = ["Window", "Windows", "find_windows"]

_LOCAL = frozenset(
    {
        "Add", "AveragePool", "Cast", "Clip", "Conv", "Concat", "Div", "Elu", "Gelu", "HardSigmoid", "HardSwish",
        "Identity", "LeakyRelu", "MaxPool", "Mul", "PRelu", "Relu", "Sigmoid", "Softplus", "Split", "Sub", "Tanh",
    }
)  # fmt: skip
"""Operators that do the same at every place of a map (a Concat or Split along another axis fails the trial run)."""


@dataclass(frozen=True)
class Window:
    """A square piece of the maps: its corner and side in cells of ``Windows.grid``."""

    top: int
    left: int
    size: int


@dataclass(frozen=True)
class Windows:
    """How a part can be cut.

    The maps have ``grid`` (height, width) cells: the size of the smallest map; ``strides`` is the size of a cell in
    each input and output. ``margin`` cells next to a cut are wrong in the outputs.
    """

    grid: tuple[int, int]
    strides: Mapping[str, int]
    margin: int
    size: int

    def draw(self, random: np.random.Generator) -> Window:
        top, left = (int(random.integers(0, cells - self.size + 1)) for cells in self.grid)
        return Window(top, left, self.size)

    def cut(self, name: str, array: np.ndarray, window: Window) -> np.ndarray:
        """The window of a map ``[..., height, width]``, as a view; an axis of length 1 stays (it is broadcast)."""
        stride = self.strides[name]
        rows = slice(window.top * stride, (window.top + window.size) * stride)
        columns = slice(window.left * stride, (window.left + window.size) * stride)
        height, width = array.shape[-2:] if array.ndim > 1 else (1, 1)
        array = array[..., rows, :] if height > 1 else array
        return array[..., columns] if width > 1 else array

    def inner(self, name: str, tensor: torch.Tensor, window: Window) -> torch.Tensor:
        """What is right of an output's window: without the margins next to cuts; those at the map's edge are right."""
        stride, ends = self.strides[name], []
        for begin, cells in ((window.top, self.grid[0]), (window.left, self.grid[1])):
            first = self.margin * stride if begin > 0 else 0
            last = (window.size - (self.margin if begin + window.size < cells else 0)) * stride
            ends.append(slice(first, last))
        height, width = tensor.shape[-2:] if tensor.ndim > 1 else (1, 1)
        tensor = tensor[..., ends[0], :] if height > 1 else tensor
        return tensor[..., ends[1]] if width > 1 else tensor


def find_windows(
    part: ir.Model, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray], *, size: int
) -> Windows | None:
    """Windows of ``size`` cells for a part, or None where the part needs whole maps or they are small anyway.

    ``inputs`` and ``outputs`` are one sample of the float part ``[N, C, H, W]``; the margin is measured on it.
    """
    maps = {**inputs, **outputs}
    if any(array.ndim != 4 for array in maps.values()) or any(node.op_type not in _LOCAL for node in part.graph):
        return None
    grid = tuple(min(array.shape[axis] for array in maps.values()) for axis in (2, 3))
    strides = {name: array.shape[2] // grid[0] for name, array in maps.items()}
    fits = all(a.shape[2:] == (grid[0] * strides[n], grid[1] * strides[n]) for n, a in maps.items())
    if not fits or min(grid) < 1.5 * size:
        return None
    trial = Windows((grid[0], grid[1]), strides, 0, size)
    window = Window((grid[0] - size) // 2, (grid[1] - size) // 2, size)
    graph = TorchGraph(part)
    feeds = {n: torch.from_numpy(np.ascontiguousarray(trial.cut(n, a, window))) for n, a in inputs.items()}
    with torch.no_grad():
        found = graph.run(feeds, list(outputs))
    margin = 0
    for name, array in outputs.items():
        wanted = trial.cut(name, array, window)
        if found[name].shape != wanted.shape:
            return None
        wrong = np.abs(found[name].numpy() - wanted) > 1e-4 * np.abs(array).max()
        places = np.argwhere(wrong.any(axis=(0, 1)))
        if len(places):
            length = wanted.shape[2]
            depth = np.minimum(places, length - 1 - places).min(axis=1).max() + 1
            margin = max(margin, -(-int(depth) // strides[name]))
    # Less than half a window must be right, or cutting is not worth it (and a global average never is).
    return Windows((grid[0], grid[1]), strides, margin, size) if 4 * margin < size else None
