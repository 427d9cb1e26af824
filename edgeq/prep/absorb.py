"""Put a per-channel ``y * scale + offset`` into the weights of the layer that computes ``y``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.prep.rewrite import change_constant, is_node, sole_consumer

__all__ = ["ABSORBING", "Layer", "channel_vector", "layer_before", "scale_layer"]

ABSORBING = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose or Gemm with constant weight and bias.

    ``bias`` is float64 ``[channels]`` (zeros if the node has none); ``rank`` is the output's.
    """

    node: ir.Node
    weight: np.ndarray
    bias: np.ndarray
    rank: int

    @property
    def channels(self) -> int:
        return len(self.bias)


def layer_before(value: ir.Value | None) -> Layer | None:
    """The layer behind ``value``, if its weights are constant and only one node sees its output."""
    node = value.producer() if value is not None else None
    if value is None or node is None or not is_node(node, *ABSORBING) or sole_consumer(value) is None:
        return None
    weight = constant_array(node.inputs[1])
    if weight is None or weight.dtype.kind != "f":
        return None
    rank = weight.ndim
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
    return None if bias is None else Layer(node, weight, bias, rank)


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
    would overflow its type.
    """
    node, weight = layer.node, layer.weight
    beta = 1.0
    if node.op_type == "Gemm":
        beta = float(node.attributes.get_float("beta", 1.0))
        transposed = node.attributes.get_int("transB", 0)
        factor = scale[:, None] if transposed else scale[None, :]
    elif node.op_type == "Conv":
        factor = scale.reshape((-1,) + (1,) * (weight.ndim - 1))
    else:
        # ConvTranspose: [in, out / group, ...], and each group's inputs feed its own outputs.
        group = int(node.attributes.get_int("group", 1))
        factor = np.repeat(scale.reshape(group, -1), weight.shape[0] // group, axis=0)
        factor = factor.reshape(weight.shape[:2] + (1,) * (weight.ndim - 2))
    if beta == 0:
        return False
    with np.errstate(over="ignore"):
        new_weight = (weight * factor).astype(weight.dtype)
        new_bias = (layer.bias * scale + offset / beta).astype(weight.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    change_constant(node, 1, new_weight)
    if new_bias.any() or len(node.inputs) > 2:
        change_constant(node, 2, new_bias)
    return True
