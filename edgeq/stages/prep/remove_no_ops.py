"""Nodes that hand on their first input unchanged are removed.

One function per operator says which input the output equals, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.rewrite import NodePass, bypass, constant_ints, same_shape

__all__ = ["RemoveNoOps"]

_TO_THE_END = 2**31 - 1


class RemoveNoOps(NodePass):
    """Identity, Dropout at inference, casts to the same type, reshapes to the same shape, x + 0, ..."""

    name = "remove no-ops"

    def rewrite(self, node: ir.Node) -> bool:
        return bypass(node, _EQUALS[node.op_type](node))


def _first(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _only_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(node: ir.Node) -> ir.Value | None:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant_array(node.inputs[2])
        if training is None or bool(training):
            return None
    return node.inputs[0]


def _cast(node: ir.Node) -> ir.Value | None:
    value = node.inputs[0]
    return value if value is not None and value.dtype == ir.DataType(node.attributes.get_int("to", 0)) else None


def _cast_like(node: ir.Node) -> ir.Value | None:
    value, like = node.inputs
    if value is None or like is None or value.dtype is None:
        return None
    return value if value.dtype == like.dtype else None


def _view(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if same_shape(node.inputs[0], node.outputs[0]) else None


def _expand(node: ir.Node) -> ir.Value | None:
    value, shape = node.inputs[0], constant_array(node.inputs[1])
    if value is None or value.shape is None or shape is None or shape.size > len(value.shape):
        return None
    trailing = list(value.shape)[len(value.shape) - shape.size :]
    return value if all(want in (1, dim) for want, dim in zip(shape.tolist(), trailing, strict=True)) else None


def _slice(node: ir.Node) -> ir.Value | None:
    value = node.inputs[0]
    starts, ends = constant_ints(node, "starts", 1), constant_ints(node, "ends", 2)
    steps = constant_ints(node, "steps", 4) if len(node.inputs) > 4 and node.inputs[4] is not None else ()
    axes = constant_ints(node, "axes", 3) or tuple(range(len(starts or ())))
    if value is None or value.shape is None or starts is None or ends is None or steps is None:
        return None
    for axis, start, end in zip(axes, starts, ends, strict=True):
        dim = value.shape[axis]
        if start != 0 or end < (dim if isinstance(dim, int) else _TO_THE_END):
            return None
    return value if all(step == 1 for step in steps) else None


def _pad(node: ir.Node) -> ir.Value | None:
    pads = constant_ints(node, "pads", 1)
    return node.inputs[0] if pads is not None and not any(pads) else None


def _tile(node: ir.Node) -> ir.Value | None:
    repeats = constant_array(node.inputs[1])
    return node.inputs[0] if repeats is not None and (repeats == 1).all() else None


def _transpose(node: ir.Node) -> ir.Value | None:
    perm = node.attributes.get_ints("perm", None)
    return node.inputs[0] if perm is not None and list(perm) == sorted(perm) else None


def _clip(node: ir.Node) -> ir.Value | None:
    bounded = any(value is not None for value in node.inputs[1:]) or {"min", "max"} & set(node.attributes)
    return None if bounded else node.inputs[0]


def _neutral(node: ir.Node, number: int, sides: tuple[int, ...]) -> ir.Value | None:
    """The other operand, if the one on a side in ``sides`` is ``number`` everywhere and widens nothing."""
    for side in sides:
        array, value = constant_array(node.inputs[side]), node.inputs[1 - side]
        if array is None or value is None or value.shape is None or array.ndim > len(value.shape):
            continue
        trailing = list(value.shape)[len(value.shape) - array.ndim :]
        fits = all(size in (1, dim) for size, dim in zip(array.shape, trailing, strict=True))
        if fits and array.size and bool(np.all(array == number)):
            return value
    return None


_EQUALS: Mapping[str, Callable[[ir.Node], ir.Value | None]] = {
    "Add": lambda node: _neutral(node, 0, (0, 1)),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": _only_input,
    "Div": lambda node: _neutral(node, 1, (1,)),
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _view,
    "Identity": _first,
    "Max": _only_input,
    "Mean": _only_input,
    "Min": _only_input,
    "Mul": lambda node: _neutral(node, 1, (0, 1)),
    "Pad": _pad,
    "Pow": lambda node: _neutral(node, 1, (1,)),
    "Reshape": _view,
    "Slice": _slice,
    "Squeeze": _view,
    "Sub": lambda node: _neutral(node, 0, (1,)),
    "Sum": _only_input,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _view,
}

RemoveNoOps.ops = frozenset(_EQUALS)
