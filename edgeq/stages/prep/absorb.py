"""Put a per-channel ``y * scale + offset`` into the weights of the layer that computes ``y``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.rewrite import change_constant, is_node, sole_consumer

__all__ = ["Layer", "channel_vector", "layer_before", "scale_layer"]


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose, Gemm or MatMul with constant weight and bias.

    ``bias`` is float64 ``[channels]``, zeros if there is none; it is input ``bias_index`` of
    ``bias_node``: of the layer itself, of the Add behind a MatMul, or nowhere (a MatMul alone).
    ``rank`` is the output's, and ``axis`` its axis of channels.
    """

    node: ir.Node
    weight: np.ndarray
    bias: np.ndarray
    bias_node: ir.Node | None
    bias_index: int
    rank: int
    axis: int

    @property
    def channels(self) -> int:
        return len(self.bias)


def layer_before(value: ir.Value | None) -> Layer | None:
    """The layer behind ``value``, if its weights are constant and only one node sees its output."""
    node = value.producer() if value is not None else None
    if value is None or node is None or sole_consumer(value) is None:
        return None
    if is_node(node, "Conv", "ConvTranspose", "Gemm"):
        return _biased_layer(node)
    if is_node(node, "MatMul"):
        return _matmul_layer(node, None, 0)
    if is_node(node, "Add"):
        for side in (0, 1):
            product = node.inputs[side]
            before = product.producer() if product is not None else None
            if product is not None and is_node(before, "MatMul") and sole_consumer(product) is node:
                return _matmul_layer(cast(ir.Node, before), node, 1 - side)
    return None


def _biased_layer(node: ir.Node) -> Layer | None:
    weight = _weight(node)
    if weight is None:
        return None
    if node.op_type == "Conv":
        channels = weight.shape[0]
    elif node.op_type == "ConvTranspose":
        channels = weight.shape[1] * node.attributes.get_int("group", 1)
    else:
        channels = weight.shape[0 if node.attributes.get_int("transB", 0) else 1]
    bias: np.ndarray | None = np.zeros(channels)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        array = constant_array(node.inputs[2])
        axis = 1 if node.op_type == "Gemm" else 0
        bias = None if array is None else channel_vector(array, channels, axis + 1, axis)
    return None if bias is None else Layer(node, weight, bias, node, 2, weight.ndim, 1)


def _matmul_layer(node: ir.Node, add: ir.Node | None, bias_index: int) -> Layer | None:
    weight, shape = _weight(node), node.outputs[0].shape
    if weight is None or weight.ndim != 2 or shape is None:
        return None
    rank, channels = len(shape), weight.shape[1]
    bias: np.ndarray | None = np.zeros(channels)
    if add is not None:
        array = constant_array(add.inputs[bias_index])
        bias = None if array is None else channel_vector(array, channels, rank, rank - 1)
    return None if bias is None else Layer(node, weight, bias, add, bias_index, rank, rank - 1)


def _weight(node: ir.Node) -> np.ndarray | None:
    array = constant_array(node.inputs[1])
    return array if array is not None and array.dtype.kind == "f" else None


def channel_vector(array: np.ndarray, channels: int, rank: int, axis: int) -> np.ndarray | None:
    """float64 ``[channels]`` if ``array``, broadcast to ``rank`` dimensions, varies along ``axis`` only."""
    if array.ndim > rank:
        return None
    full = array.reshape((1,) * (rank - array.ndim) + array.shape).astype(np.float64)
    wanted = [1] * rank
    if full.size > 1:
        wanted[axis] = channels
    if list(full.shape) != wanted:
        return None
    return np.broadcast_to(full.ravel(), (channels,)).copy()


def scale_layer(layer: Layer, scale: np.ndarray, offset: np.ndarray) -> bool:
    """Make the layer compute ``y * scale + offset``; both float64 ``[channels]``.

    Weights that another node reads are copied first. False, and nothing changes, if a number
    would overflow its type, or if there is an offset and no place for it.
    """
    node, weight = layer.node, layer.weight
    if layer.bias_node is None and offset.any():
        return False
    beta = float(node.attributes.get_float("beta", 1.0)) if node.op_type == "Gemm" else 1.0
    if beta == 0:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        new_weight = (weight * _weight_factor(node, weight, scale)).astype(weight.dtype)
        new_bias = (layer.bias * scale + offset / beta).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    if (scale != 1).any():
        change_constant(node, 1, new_weight)
    if layer.bias_node is not None and (new_bias != layer.bias).any():
        change_constant(layer.bias_node, layer.bias_index, new_bias)
    return True


def _weight_factor(node: ir.Node, weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``scale`` in a shape that multiplies ``weight`` along its output channels."""
    if node.op_type == "Conv":
        return scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    if node.op_type == "ConvTranspose":
        # [in, out / group, ...], and each group's inputs feed its own outputs.
        group = int(node.attributes.get_int("group", 1))
        factor = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
        return factor.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2))
    return scale[:, None] if node.attributes.get_int("transB", 0) else scale[None, :]
