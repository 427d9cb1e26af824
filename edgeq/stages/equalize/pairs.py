"""Two layers with nothing between them that minds the scale of a channel, and weights seen channel by channel."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array

__all__ = ["Pair", "chains", "find_pairs", "in_channels", "multiply_in", "multiply_out", "out_channels"]

_LAYERS = ("Conv", "Gemm", "MatMul")

_HOMOGENEOUS = (
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Identity",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
)
"""``f(s x) = s f(x)`` for every ``s > 0``, channel by channel (PRelu: its slopes are constants of the channels)."""

_FLATTENING = ("Flatten", "Reshape", "Squeeze")
"""Where ``[N, C, 1, 1]`` becomes ``[N, C]``, the channels stay what they are."""


@dataclass(frozen=True)
class Pair:
    """``tail`` is the only reader of what ``head`` gives, through ``path``; all are names of nodes.

    ``hidden`` is the tensor that ``tail`` reads, ``axis`` its channel axis and ``channels`` their number.
    ``clips`` are the Clip nodes of the path, one at most, with lower bound 0, ``bounded`` the tensor that it gives
    (not ``hidden``, where pooling follows) and ``bound`` its upper bound (inf: there is none). ``adds`` are
    the additions of a constant for each channel: biases.
    """

    head: str
    tail: str
    path: tuple[str, ...]
    hidden: str
    axis: int
    channels: int
    clips: tuple[str, ...] = ()
    bound: float = np.inf
    adds: tuple[str, ...] = ()
    bounded: str | None = None

    @property
    def axes(self) -> dict[str, int]:
        """The tensors whose channels must be known before the pair is equalized, with their channel axis."""
        names = (self.hidden, *((self.bounded,) if self.bounded is not None else ()))
        return dict.fromkeys(names, self.axis)

    @property
    def nodes(self) -> tuple[str, ...]:
        return (self.head, *self.path, self.tail)


def find_pairs(model: ir.Model, integer: Container[str]) -> list[Pair]:
    """All pairs whose two layers are among the nodes that ``integer`` names, in graph order of the heads."""
    found = []
    for node in model.graph:
        if _is_layer(node) and str(node.name) in integer and _scalable(node):
            pair = _follow(node, integer)
            if pair is not None:
                found.append(pair)
    return found


def _is_layer(node: ir.Node) -> bool:
    weight = constant_array(node.inputs[1]) if node.op_type in _LAYERS and len(node.inputs) > 1 else None
    plain = not node.attributes.get_int("transA", 0) and node.attributes.get_float("alpha", 1.0) == 1.0
    return weight is not None and plain and (node.op_type == "Conv" or weight.ndim == 2)


def _scalable(node: ir.Node) -> bool:
    """Whether the bias, if there is one, is a constant for each channel."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array, weight = constant_array(bias), constant_array(node.inputs[1])
    assert weight is not None
    plain = node.attributes.get_float("beta", 1.0) == 1.0
    return bias is None or (plain and array is not None and array.shape == (len(out_channels(node, weight)),))


def _follow(head: ir.Node, integer: Container[str]) -> Pair | None:
    value, weight = head.outputs[0], constant_array(head.inputs[1])
    assert weight is not None
    channels = len(out_channels(head, weight))
    path: list[str] = []
    clips: list[str] = []
    adds: list[str] = []
    bound, bounded = np.inf, None
    if value.shape is None:
        return None
    axis = 1 if head.op_type != "MatMul" else len(value.shape) - 1
    while not value.is_graph_output() and len(value.uses()) == 1:
        node, position = next(iter(value.uses()))
        name, rank = str(node.name), len(value.shape) if value.shape is not None else 0
        if node.graph is not head.graph or not rank:
            return None
        if _is_layer(node) and position == 0 and name in integer:
            read = 1 if node.op_type != "MatMul" else rank - 1
            inside = len(in_channels(node, constant_array(node.inputs[1])))  # type: ignore[arg-type]
            if read != axis or inside != channels:
                return None
            held = (tuple(path), str(value.name), axis, channels, tuple(clips), bound, tuple(adds), bounded)
            return Pair(str(head.name), name, *held)
        step = _passes(node, position, axis, channels)
        if step is None or (node.op_type == "Clip" and clips):
            return None
        path.append(name)
        bound = min(bound, step)
        if node.op_type == "Clip":
            clips.append(name)
            bounded = str(node.outputs[0].name)
        elif node.op_type == "Add":
            adds.append(name)
        value = node.outputs[0]
    return None


def _passes(node: ir.Node, position: int, axis: int, channels: int) -> float | None:
    """The upper bound that ``node`` sets (inf: none); None if a channel cannot change its scale through it."""
    value, output = node.inputs[position], node.outputs[0]
    shape = None if value is None else value.shape
    if node.domain not in ("", "ai.onnx") or shape is None or len(node.outputs) > 1:
        return None
    if node.op_type == "Clip":
        low, high = (constant_array(operand) for operand in (*node.inputs[1:], None, None)[:2])
        given = [operand for operand in node.inputs[1:] if operand is not None]
        known = all(constant_array(operand) is not None for operand in given)
        if not known or low is None or float(low) != 0 or (high is not None and not float(high) > 0):
            return None
        return np.inf if high is None else float(high)
    if node.op_type == "Add":
        array = constant_array(node.inputs[1 - position])
        wanted = [channels if index == axis else 1 for index in range(len(shape))]
        return np.inf if array is not None and list(_leading(array.shape, len(shape))) == wanted else None
    if node.op_type == "PRelu":
        return np.inf if position == 0 and constant_array(node.inputs[1]) is not None else None
    if node.op_type in _HOMOGENEOUS:
        spatial = node.op_type in ("Relu", "LeakyRelu", "Identity") or axis == 1
        return np.inf if spatial else None
    if node.op_type in _FLATTENING and position == 0 and output.shape is not None:
        flat = axis == 1 and all(size == 1 for size in shape[2:]) and len(output.shape) == 2
        return np.inf if flat and output.shape[1] == channels else None
    return None


def _leading(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + tuple(shape)


# -- weights: Conv [M, C/g, ...], Gemm [K, N] or with transB [N, K], MatMul [K, N]


def out_channels(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """The largest magnitude in each output channel, float64 ``[M]``."""
    moved = np.moveaxis(weight, _out_axis(node), 0)
    return np.abs(moved.reshape(len(moved), -1)).max(axis=1).astype(np.float64)


def in_channels(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """The largest magnitude in each input channel, float64 ``[C]``; a Conv's groups one after the other."""
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
        return np.abs(split).max(axis=(1, 3)).ravel().astype(np.float64)
    moved = np.moveaxis(weight, 1 - _out_axis(node), 0)
    return np.abs(moved).max(axis=1).astype(np.float64)


def multiply_out(node: ir.Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Each output channel times its ``factor`` ``[M]``."""
    view = [1] * weight.ndim
    view[_out_axis(node)] = -1
    return weight * factor.reshape(view)


def multiply_in(node: ir.Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Each input channel times its ``factor`` ``[C]``."""
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
        return (split * factor.reshape(groups, 1, -1, 1)).reshape(weight.shape)
    view = [1, 1]
    view[1 - _out_axis(node)] = -1
    return weight * factor.reshape(view)


def _out_axis(node: ir.Node) -> int:
    return 0 if node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0)) else 1


def chains(pairs: list[Pair]) -> list[list[Pair]]:
    """Pairs that share a layer together, each chain from its first layer to its last."""
    found: list[list[Pair]] = []
    for pair in pairs:
        if found and found[-1][-1].tail == pair.head:
            found[-1].append(pair)
        else:
            found.append([pair])
    assert all(a.tail == b.head for chain in found for a, b in pairwise(chain))
    return found
