"""Stamp the quantized graph with the opset, IR version and Q/DQ domain that its types and the target need."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.qtypes import Scheme
from edgeq.stages.tune.drop_absorbed import drop_absorbed
from edgeq.stages.tune.opset import ir_version_of, least_opset
from edgeq.target import TargetProfile

__all__ = ["finish"]


def finish(model: ir.Model, target: TargetProfile, scheme: Scheme) -> ir.Model:
    """Set opset, IR version and domains in place, and return ``model``.

    The opset is the target's, unless integer types or operators need a newer one (see ``opset_note``).
    In the domain ``com.microsoft`` DequantizeLinear takes no blocks (measured, ONNX Runtime 1.32):
    those stay standard. A Relu or Clip that the integers' ends replace is left out where the provider
    does not do so.
    """
    opset = max(target.graph.opset, least_opset(target, scheme), model.opset_imports.get("", 0))
    model.opset_imports[""] = opset
    model.ir_version = max(target.graph.ir_version, ir_version_of(opset))
    if target.activations.absorption == "none":
        drop_absorbed(model)
    if target.graph.qdq_domain != "ai.onnx":
        for node in model.graph:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and "block_size" not in node.attributes:
                node.domain = target.graph.qdq_domain
                model.opset_imports[node.domain] = 1
    model.producer_name, model.producer_version = "edgeq", None
    return model
