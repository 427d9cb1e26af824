"""BatchNormalization at inference is a per-channel scale and offset: it goes into the layer before it."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.absorb import layer_before, scale_layer
from edgeq.stages.prep.fold_affine import affine_of
from edgeq.stages.prep.rewrite import NodePass, bypass, change_constant, is_node, same_dims, sole_consumer

__all__ = ["FoldBatchNorm"]


class FoldBatchNorm(NodePass):
    """Into Conv, ConvTranspose or Gemm; and a constant Mul, Add, Sub or Div before it goes into itself.

    ``y = scale * (x - mean) / sqrt(var + epsilon) + bias`` (Ioffe and Szegedy, arXiv:1502.03167,
    algorithm 2). Stays: training mode, computed parameters, a layer whose raw output something
    else reads.
    """

    name = "fold batch norm"
    effect = "reorders"
    ops = frozenset({"BatchNormalization"})

    def rewrite(self, node: ir.Node) -> bool:
        folded = False
        while node.graph is not None and _fold(node):
            folded = True
        return folded


def _fold(node: ir.Node) -> bool:
    """One step: the whole node into a layer, or one affine operator into the node."""
    used = any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    if used or node.attributes.get_int("training_mode", 0) != 0:
        return False
    arrays = [constant_array(value) for value in node.inputs[1:5]]
    if any(array is None or array.ndim != 1 for array in arrays):
        return False
    gamma, beta, mean, variance = (cast(np.ndarray, array).astype(np.float64) for array in arrays)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    offset = beta - mean * scale
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        return False
    layer = layer_before(node.inputs[0])
    if layer is not None:
        return (
            (layer.channels, layer.axis) == (len(scale), 1)
            and scale_layer(layer, scale, offset)
            and bypass(node, node.inputs[0])
        )
    return _absorb_affine(node, gamma, offset, scale)


def _absorb_affine(node: ir.Node, gamma: np.ndarray, offset: np.ndarray, scale: np.ndarray) -> bool:
    """``BN(x * m + a)``: gamma *= m, bias = offset + scale * a, mean = 0."""
    value = node.inputs[0]
    before = value.producer() if value is not None else None
    if value is None or before is None or not is_node(before, "Mul", "Add", "Sub", "Div"):
        return False
    if sole_consumer(value) is not node or value.shape is None:
        return False
    affine = affine_of(before, len(scale), len(value.shape), 1)
    # An operand that the constant broadcast has fewer channels than the normalization.
    if affine is None or not same_dims(affine.source, value):
        return False
    dtype = cast(np.ndarray, constant_array(node.inputs[1])).dtype
    change_constant(node, 1, (gamma * affine.scale).astype(dtype))
    change_constant(node, 2, (offset + scale * affine.offset).astype(dtype))
    change_constant(node, 3, np.zeros(len(scale), dtype))
    return bypass(before, affine.source)
