"""Mul, Add, Sub and Div by constants per channel, after a layer, go into the layer's weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.absorb import channel_vector, layer_before, scale_layer
from edgeq.stages.prep.rewrite import NodePass, bypass

__all__ = ["Affine", "FoldAffine", "affine_of"]


@dataclass(frozen=True)
class Affine:
    """``source * scale + offset``, both float64 ``[channels]``."""

    source: ir.Value
    scale: np.ndarray
    offset: np.ndarray


class FoldAffine(NodePass):
    """After Conv, ConvTranspose, Gemm, MatMul, and MatMul with the Add of its bias.

    That Add stays: the target decides on the form of a linear layer.
    """

    name = "fold affine"
    effect = "reorders"
    ops = frozenset({"Mul", "Add", "Sub", "Div"})

    def rewrite(self, node: ir.Node) -> bool:
        for value in node.inputs:
            layer = layer_before(value)
            if layer is None:
                continue
            affine = affine_of(node, layer.channels, layer.rank, layer.axis)
            if affine is None or affine.source is not value:
                return False
            return scale_layer(layer, affine.scale, affine.offset) and bypass(node, value)
        return False


def affine_of(node: ir.Node, channels: int, rank: int, axis: int) -> Affine | None:
    """What a Mul, Add, Sub or Div with one constant operand computes per channel, channels on ``axis`` of ``rank``."""
    for side in (1, 0):
        array, source = constant_array(node.inputs[side]), node.inputs[1 - side]
        if array is None or source is None or array.dtype.kind != "f":
            continue
        vector = channel_vector(array, channels, rank, axis)
        if vector is None:
            return None
        ones, zeros = np.ones(channels), np.zeros(channels)
        if node.op_type == "Mul":
            return Affine(source, vector, zeros)
        if node.op_type == "Add":
            return Affine(source, ones, vector)
        if node.op_type == "Sub":
            return Affine(source, ones, -vector) if side == 1 else Affine(source, -ones, vector)
        if side == 1 and vector.all():
            return Affine(source, 1 / vector, zeros)
        return None
    return None
