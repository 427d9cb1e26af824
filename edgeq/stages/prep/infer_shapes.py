"""Types and shapes of every value, by ONNX's shape inference with propagation of small integers.

Weights are not serialized: the inference sees their types and shapes, and the values of
initializers of up to 1 KiB only, so that a model may be larger than protobuf's 2 GiB.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.stages.prep.rewrite import PrepPass

__all__ = ["InferShapes"]

_SMALL_BYTES = 1024

_LONGEST_VECTOR = 1 << 16
"""Propagation keeps some 150 bytes for each element of a vector that is added or multiplied."""


class InferShapes(PrepPass):
    """Adds what can be inferred; never replaces a known dimension by an unknown one.

    Raises:
        ModelError: the model's types or shapes contradict each other.
    """

    name = "infer shapes"
    effect = "annotates"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sketch = model.clone()
        for value in list(sketch.graph.initializers.values()):
            tensor = value.const_value
            if tensor is not None and tensor.nbytes > _SMALL_BYTES and not value.is_graph_output():
                value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
                del sketch.graph.initializers[str(value.name)]
                value.const_value = None
                sketch.graph.inputs.append(value)
        try:
            proto = onnx.shape_inference.infer_shapes(ir.to_proto(sketch))
            if _longest_vector(proto) <= _LONGEST_VECTOR:
                proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(
                f"the model's types or shapes contradict each other: {str(error).strip().splitlines()[0][:300]}",
                remedy="export the model again, or check it with onnx.checker",
            ) from None
        inferred = {info.name: info for info in (*proto.graph.value_info, *proto.graph.output)}
        modified = False
        for node in model.graph:
            for output in node.outputs:
                if output.name in inferred:
                    modified |= _merge(output, inferred[output.name])
        return ir.passes.PassResult(model, modified)


def _longest_vector(proto: onnx.ModelProto) -> int:
    """Elements of the longest tensor of rank 1 whose length is known."""
    graph = proto.graph
    shapes = [info.type.tensor_type.shape.dim for info in (*graph.input, *graph.value_info, *graph.output)]
    return max((dims[0].dim_value for dims in shapes if len(dims) == 1), default=0)


def _merge(value: ir.Value, info: onnx.ValueInfoProto) -> bool:
    modified = False
    if value.type is None and info.type.WhichOneof("value") is not None:
        value.type = ir.serde.deserialize_type_proto_for_type(info.type)
        modified = value.type is not None
    shape = ir.serde.deserialize_type_proto_for_shape(info.type)
    if shape is None:
        return modified
    if value.shape is None or len(value.shape) != len(shape):
        value.shape = shape
        return True
    pairs = zip(value.shape, shape, strict=True)
    merged = [new if not isinstance(old, int) and _better(old, new) else old for old, new in pairs]
    if merged != list(value.shape):
        value.shape = ir.Shape(merged)
        modified = True
    return modified


def _better(old: ir.SymbolicDim, new: int | ir.SymbolicDim) -> bool:
    return isinstance(new, int) or (old.value is None and new.value is not None)
