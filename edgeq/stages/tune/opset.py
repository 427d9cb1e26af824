"""The opset of the graph: what its types need, and the target's, where the operators have a form in it."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from edgeq.qtypes import Scheme
from edgeq.target import TargetProfile

__all__ = ["ir_version_of", "least_opset", "lower_opset", "opset_note", "opset_of_types"]

_SMALL_BYTES = 1024

_IR_VERSIONS = ((25, 13), (24, 12), (23, 11), (21, 10), (19, 9))
"""From which opset on which IR version (``onnx.helper.VERSION_TABLE``)."""


def ir_version_of(opset: int) -> int:
    """The IR version that came with ``opset``; 8 for everything up to 18."""
    return next((version for first, version in _IR_VERSIONS if opset >= first), 8)


def least_opset(target: TargetProfile, scheme: Scheme) -> int:
    """The first opset in which QuantizeLinear and DequantizeLinear have the scheme's types.

    Axes since 13, blocks, 4 and 16 bits since 21, 2 bits since 25; the domain com.microsoft has 16
    and 4 bits, but no blocks, in any opset (measured, ONNX Runtime 1.32).
    """
    if target.weights.form == "matmulnbits" and scheme.weight_only:
        return 13  # no Q/DQ is left in the end
    if scheme.weight_bits == 2:
        return 25
    if scheme.block is not None:
        return 21
    narrow_or_wide = scheme.weight_bits < 8 or scheme.activation_bits == 16
    return 21 if narrow_or_wide and target.graph.qdq_domain == "ai.onnx" else 13


def opset_of_types(model: ir.Model, target: TargetProfile) -> int:
    """As ``least_opset``, of a graph whose nodes may have other formats than its scheme."""
    least = 13
    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        bits = {value.dtype.bitwidth for value in node.inputs[2:] if value is not None and value.dtype is not None}
        if 2 in bits:
            least = 25
        elif "block_size" in node.attributes or (bits & {4, 16} and target.graph.qdq_domain == "ai.onnx"):
            least = max(least, 21)
    return least


def lower_opset(model: ir.Model, target: TargetProfile, scheme: Scheme) -> ir.Model:
    """``model`` in the target's opset, where it has a newer one and its operators allow; else as it is."""
    if not _too_new(model, target) or least_opset(target, scheme) > target.graph.opset:
        return model
    lowered = _convert(model, target.graph.opset)
    return lowered if isinstance(lowered, ir.Model) else model


def opset_note(model: ir.Model, target: TargetProfile, scheme: Scheme) -> str | None:
    """Why ``model`` has a newer opset than the target asks for; None where it has not."""
    if not _too_new(model, target):
        return None
    least = least_opset(target, scheme)
    if least > target.graph.opset:
        why = f"the integer types of {scheme.name} need {least}"
    else:
        why = str(_convert(model, target.graph.opset))
    opset = model.opset_imports[""]
    return f"the graph keeps opset {opset}, and {target.name} asks for {target.graph.opset}: {why}"


def _too_new(model: ir.Model, target: TargetProfile) -> bool:
    return model.opset_imports.get("", 0) > target.graph.opset


def _convert(model: ir.Model, opset: int) -> ir.Model | str:
    """The model in an older opset, by ONNX's version converter, or why it has no form there.

    Weights stay behind: the converter sees their types and shapes, and the values of small constants
    only (axes and the like, which older opsets hold as attributes).
    """
    sketch = model.clone()
    weights: dict[str, ir.Value] = {}
    for name, value in list(sketch.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL_BYTES or value.is_graph_output():
            continue
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        weights[name] = model.graph.initializers[name]
        del sketch.graph.initializers[name]
        value.const_value = None
        sketch.graph.inputs.append(value)
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(sketch), opset)
    except RuntimeError as error:
        return str(error).rpartition("failed: ")[2].strip().splitlines()[0]
    lowered = ir.from_proto(proto)
    for value in list(lowered.graph.inputs):
        if value.name in weights:
            lowered.graph.inputs.remove(value)
            value.const_value = weights[str(value.name)].const_value
            lowered.graph.register_initializer(value)
    shapes = {str(v.name): v for node in model.graph for v in node.outputs}
    for node in lowered.graph:
        for output in node.outputs:
            known = shapes.get(str(output.name))
            if known is not None:
                output.shape, output.type = known.shape, known.type
    return lowered
