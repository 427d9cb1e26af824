"""Products of integers whose activations find their range at run time, in the form that ONNX Runtime fuses.

    x -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul(x_scale * w_scale) -> y

becomes MatMulIntegerToFloat, or DynamicQuantizeMatMul where nobody else reads the quantized ``x``, with the bias
that is added behind (measured, ONNX Runtime 1.32: every processor of its CPU provider).
"""

from __future__ import annotations

import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import Names

__all__ = ["Ranged", "multiply_ranged"]


class Ranged:
    """One DynamicQuantizeLinear per tensor, for all that multiply it."""

    def __init__(self, model: ir.Model, names: Names) -> None:
        self.model = model
        self.names = names
        self.made: dict[ir.Value, ir.Node] = {}

    def quantize(self, value: ir.Value) -> ir.Node:
        """The node with the outputs uint8 like ``value``, scale float32 ``[]`` and zero point uint8 ``[]``."""
        if value in self.made:
            return self.made[value]
        name = str(value.name)
        node = ir.node("DynamicQuantizeLinear", [value], name=f"{name}_DynamicQuantizeLinear", num_outputs=3)
        parts = (("quantized", value.shape, ir.DataType.UINT8), ("scale", ir.Shape(()), ir.DataType.FLOAT))
        for output, (what, shape, dtype) in zip(
            node.outputs, (*parts, ("zero_point", ir.Shape(()), ir.DataType.UINT8)), strict=True
        ):
            output.name = self.names.fresh(f"{name}_ranged_{what}")
            output.shape, output.type = shape, ir.TensorType(dtype)
        producer = value.producer()
        graph = self.model.graph
        if producer is not None:
            graph.insert_after(producer, [node])
        else:
            graph.insert_before(graph[0], [node])
        self.made[value] = node
        return node


def multiply_ranged(
    model: ir.Model, node: ir.Node, weight: ir.Value, scale: ir.Value, zero: ir.Value, ranged: Ranged, names: Names
) -> ir.Value:
    """Replace a MatMul or Gemm, in place, by the product of integers with ``weight``, int8 ``[K, N]``.

    ``scale`` is float32 ``[N]`` or ``[]``, ``zero`` int8 of the same shape. The product of integers keeps the
    node's name, the result, which is returned, the tensor's; the bias of a Gemm is added in float.

    Raises:
        ModelError: the node is neither, or its input is missing.
    """
    value, output = node.inputs[0], node.outputs[0]
    if value is None or node.op_type not in ("MatMul", "Gemm"):
        raise ModelError(f"the plan multiplies {node.op_type} by activations ranged at run time", where=str(node.name))
    stem, result = str(node.name), str(output.name)
    quantized = ranged.quantize(value)
    integers = ir.node("MatMulInteger", [quantized.outputs[0], weight, quantized.outputs[2], zero], name=stem)
    cast = ir.node("Cast", [integers.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{stem}_Cast")
    scales = ir.node("Mul", [quantized.outputs[1], scale], name=f"{stem}_scales")
    product = ir.node("Mul", [cast.outputs[0], scales.outputs[0]], name=f"{stem}_product")
    nodes = [integers, cast, scales, product]
    kinds = (("integers", output.shape, ir.DataType.INT32), ("floats", output.shape, ir.DataType.FLOAT))
    for made, (what, shape, dtype) in zip(nodes, (*kinds, ("scales", scale.shape, ir.DataType.FLOAT)), strict=False):
        _declare(made.outputs[0], names.fresh(f"{stem}_{what}"), shape, dtype)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        _declare(product.outputs[0], names.fresh(f"{stem}_product"), output.shape, ir.DataType.FLOAT)
        nodes.append(ir.node("Add", [product.outputs[0], bias], name=f"{stem}_bias"))
    last = nodes[-1].outputs[0]
    last.shape, last.type = output.shape, output.type
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [output], [last])
    last.name = result
    return last


def _declare(value: ir.Value, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    value.name = name
    value.shape, value.type = shape, ir.TensorType(dtype)
