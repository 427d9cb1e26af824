"""Nodes that read constants only are computed once, by ONNX Runtime itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir

from edgeq.errors import ModelError
from edgeq.graph import constant_array
from edgeq.runtime import open_session, session_options
from edgeq.stages.prep.rewrite import PrepPass, bypass, register_initializer

__all__ = ["FOLD_LIMIT", "FoldConstants"]

FOLD_LIMIT = 4 << 20
"""Bytes: a result may be this large, or twice its operands, whichever is more.

An Expand of one number to a large tensor is cheaper to compute than to ship and load."""

_EMBED_BYTES = 1024
"""Operands up to this size are part of the small model, where shape inference sees their values."""

_NEVER = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",  # its integers are what a quantized model is about
        "DynamicQuantizeLinear",
        "Multinomial",
        "QuantizeLinear",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


class FoldConstants(PrepPass):
    """One node at a time, in graph order; a node that ONNX Runtime cannot run alone stays."""

    name = "fold constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if not _foldable(node):
                continue
            results = _evaluate(model, node)
            if results is not None:
                modified |= _replace_outputs(model, node, results)
        return ir.passes.PassResult(model, modified)


def _foldable(node: ir.Node) -> bool:
    """Standard, deterministic, without subgraphs, not an output of the model, all operands constant."""
    if node.domain != "" or node.op_type in _NEVER or not any(value is not None for value in node.inputs):
        return False
    if any(output.is_graph_output() for output in node.outputs):
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    return all(value is None or (value.is_initializer() and not value.is_graph_input()) for value in node.inputs)


def _evaluate(model: ir.Model, node: ir.Node) -> Sequence[np.ndarray] | None:
    """The node's outputs; None if they would be too large or cannot be computed."""
    operands = {str(value.name): value for value in node.inputs if value is not None}
    arrays = {name: constant_array(value) for name, value in operands.items()}
    if any(array is None for array in arrays.values()):
        return None
    proto = _small_model(model, node, operands)
    allowed = max(FOLD_LIMIT, 2 * sum(array.nbytes for array in arrays.values() if array is not None))
    size = _result_bytes(proto)
    if size is not None and size > allowed:
        return None
    feeds = {info.name: arrays[info.name] for info in proto.graph.input}
    names = [output.name for output in proto.graph.output]
    try:
        with open_session(ir.from_proto(proto), session_options(threads=1, optimization="none")) as session:
            results = session.run(names, feeds)
    except (ModelError, RuntimeError, ValueError, TypeError):
        return None
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        if type(error).__module__.startswith("onnxruntime"):
            return None
        raise
    if not all(isinstance(result, np.ndarray) and result.dtype != object for result in results):
        return None
    return results if sum(result.nbytes for result in results) <= allowed else None


def _small_model(model: ir.Model, node: ir.Node, operands: dict[str, ir.Value]) -> onnx.ModelProto:
    inputs, initializers = [], []
    for name, value in operands.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes <= _EMBED_BYTES:
            initializer = ir.to_proto(tensor)
            initializer.name = name
            initializers.append(initializer)
        else:
            inputs.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), list(tensor.shape.numpy())))
    outputs = [onnx.ValueInfoProto(name=output.name) for output in node.outputs if output.name]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "fold", inputs, outputs, initializers)
    opsets = [onnx.helper.make_opsetid("", model.graph.opset_imports.get("", 1))]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=min(model.ir_version or 10, 10))


def _result_bytes(proto: onnx.ModelProto) -> int | None:
    """Bytes of all outputs, before anything is computed; None if inference does not tell."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto)
    except onnx.shape_inference.InferenceError:
        return None
    total = 0
    for output in inferred.graph.output:
        tensor = output.type.tensor_type
        if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            return None
        width = ir.DataType(tensor.elem_type).itemsize if tensor.elem_type else 8
        total += int(np.prod([dim.dim_value for dim in tensor.shape.dim], dtype=np.float64) * width)
    return total


def _replace_outputs(model: ir.Model, node: ir.Node, results: Sequence[np.ndarray]) -> bool:
    named = [output for output in node.outputs if output.name]
    for output, result in zip(named[1:], results[1:], strict=True):
        output.replace_all_uses_with(_constant(model, output, result))
    return bypass(node, _constant(model, named[0], results[0]))


def _constant(model: ir.Model, output: ir.Value, array: np.ndarray) -> ir.Value:
    name, output.name = str(output.name), None
    return register_initializer(model.graph, name, ir.tensor(array, name=name))
