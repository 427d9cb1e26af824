"""Legality of a QDQ graph: rules that every target shares, checked after insertion and after tuning."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import constant_array

__all__ = ["verify_qdq"]


def verify_qdq(model: ir.Model) -> None:
    """Check the rules of a QDQ graph.

    1. Every scale is a positive, finite, normal float32 constant, or one that is dequantized itself.
    2. Scale and zero point have the same shape; an int32 tensor (a bias) has zero point 0 or none.
    3. No QuantizeLinear reads a constant: weights are stored as integers.
    4. No DequantizeLinear feeds a QuantizeLinear with the same parameters (a pair that does nothing).
    5. The bias scale of Conv and Gemm is input scale * weight scale, or the kernel stays float.

    Raises:
        ModelError: the first violation, with the node's name. It is a defect of edgeq, never of the input.
    """
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _check_parameters(node)
        if node.op_type == "QuantizeLinear":
            _check_quantize(node)
        if node.op_type in ("Conv", "Gemm"):
            _check_bias(node)


def _fail(node: ir.Node, what: str) -> ModelError:
    return ModelError(f"the quantized graph is illegal: {what}", where=str(node.name), remedy="please report this")


def _check_parameters(node: ir.Node) -> None:
    scale = constant_array(node.inputs[1])
    maker = None if node.inputs[1] is None else node.inputs[1].producer()
    if scale is None and maker is not None and maker.op_type == "DequantizeLinear":
        return  # the scales of blocks, checked at their own node
    zero = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    if scale is None:
        raise _fail(node, "its scale is not a constant")
    stored = constant_array(node.inputs[0]) is not None
    if scale.dtype != np.float32 and not (stored and scale.dtype == np.float16):
        raise _fail(node, f"its scale is {scale.dtype}, not float32")
    if not (np.isfinite(scale).all() and (scale >= np.finfo(scale.dtype).tiny).all()):
        raise _fail(node, "a scale is not a positive, normal number")
    if zero is not None and zero.shape != scale.shape:
        raise _fail(node, f"scale {scale.shape} and zero point {zero.shape} differ in shape")
    if zero is not None and zero.dtype == np.int32 and zero.any():
        raise _fail(node, "an int32 tensor has a zero point other than 0")


def _check_quantize(node: ir.Node) -> None:
    value = node.inputs[0]
    if constant_array(value) is not None:
        raise _fail(node, "it quantizes a constant at run time")
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "DequantizeLinear" and len(producer.inputs) == len(node.inputs):
        pairs = zip(producer.inputs[1:], node.inputs[1:], strict=True)
        if all(np.array_equal(constant_array(a), constant_array(b)) for a, b in pairs):  # type: ignore[arg-type]
            raise _fail(node, "it repeats the quantization of the tensor that it reads")


def _check_bias(node: ir.Node) -> None:
    scales = [_scale_of(value) for value in (*node.inputs[:3], None, None, None)[:3]]
    if all(scale is not None for scale in scales):
        data, weight, bias = (np.asarray(scale, dtype=np.float32) for scale in scales)
        if not np.allclose(bias, data * weight, rtol=1e-6, atol=0):
            raise _fail(node, "the bias scale is not input scale * weight scale")


def _scale_of(value: ir.Value | None) -> np.ndarray | None:
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return constant_array(producer.inputs[1])
