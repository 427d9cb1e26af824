"""A Pad before Conv or a pooling becomes that operator's own padding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.rewrite import NodePass, constant_ints, is_node, sole_consumer

__all__ = ["FoldPads"]


class FoldPads(NodePass):
    """Conv pads with zeros, MaxPool with minus infinity, AveragePool with zeros that count.

    Stays: other modes and values, negative pads, pads of batch or channels, a computed amount, a
    padded tensor that something else reads, and for pools a pad that is not smaller than the window.
    """

    name = "fold pads"
    effect = "reorders"
    ops = frozenset({"Conv", "MaxPool", "AveragePool"})

    def rewrite(self, node: ir.Node) -> bool:
        value = node.inputs[0]
        pad = value.producer() if value is not None else None
        if value is None or pad is None or not is_node(pad, "Pad") or sole_consumer(value) is not node:
            return False
        extra = _spatial_pads(pad)
        if extra is None or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return False
        own = list(node.attributes.get_ints("pads", [0] * len(extra)))
        if len(own) != len(extra) or not _allowed(node, pad, own, extra):
            return False
        node.attributes.pop("auto_pad", None)
        node.attributes.add(ir.AttrInt64s("pads", [a + b for a, b in zip(own, extra, strict=True)]))
        if node.op_type == "AveragePool":
            node.attributes.add(ir.AttrInt64("count_include_pad", 1))
        node.replace_input_with(0, pad.inputs[0])
        if node.graph is not None:
            node.graph.remove(pad, safe=True)
        return True


def _spatial_pads(pad: ir.Node) -> list[int] | None:
    """``[begin..., end...]`` of the spatial axes; None unless the rest is zero and nothing is cut off."""
    pads = constant_ints(pad, "pads", 1)
    if pads is None or pad.attributes.get_string("mode", "constant") != "constant":
        return None
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        value, axes = pad.inputs[0], constant_ints(pad, "axes", 3)
        if axes is None or value is None or value.shape is None:
            return None
        rank = len(value.shape)
        full = [0] * (2 * rank)
        for number, axis in enumerate(axes):
            full[axis % rank] = pads[number]
            full[rank + axis % rank] = pads[len(axes) + number]
        pads = tuple(full)
    rank = len(pads) // 2
    if rank < 3 or min(pads) < 0 or any(pads[:2]) or any(pads[rank : rank + 2]):
        return None
    return [*pads[2:rank], *pads[rank + 2 :]]


def _pad_value(pad: ir.Node) -> float | None:
    if "value" in pad.attributes:
        return float(pad.attributes.get_float("value", 0.0))
    if len(pad.inputs) < 3 or pad.inputs[2] is None:
        return 0.0
    array = constant_array(pad.inputs[2])
    return None if array is None else float(array.reshape(()))


def _allowed(node: ir.Node, pad: ir.Node, own: list[int], extra: list[int]) -> bool:
    fill = _pad_value(pad)
    if node.op_type == "Conv":
        return fill == 0
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    if node.attributes.get_int("ceil_mode", 0) or any(
        a + b >= size for a, b, size in zip(own, extra, kernel * 2, strict=True)
    ):
        return False
    if node.op_type == "MaxPool":
        return fill is not None and fill <= float(np.finfo(np.float32).min) and len(node.outputs) == 1
    return fill == 0 and (not any(own) or node.attributes.get_int("count_include_pad", 0) == 1)
