"""Stamp the quantized graph with the opset and IR version that its types and the target need."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.qtypes import Scheme
from edgeq.target import TargetProfile

__all__ = ["finish"]

_TWO_BIT_OPSET, _TWO_BIT_IR = 25, 13


def finish(model: ir.Model, target: TargetProfile, scheme: Scheme) -> ir.Model:
    """Set opset and IR version in place, and return ``model``.

    2-bit types exist since opset 25 (IR 13); everything else is content with the target's. A model
    that came with a newer opset keeps it.
    """
    opset, ir_version = target.graph.opset, target.graph.ir_version
    if scheme.weight_bits == 2:
        opset, ir_version = max(opset, _TWO_BIT_OPSET), max(ir_version, _TWO_BIT_IR)
    model.opset_imports[""] = max(opset, model.opset_imports.get("", 0))
    model.ir_version = max(ir_version, 13 if model.opset_imports[""] >= _TWO_BIT_OPSET else ir_version)
    model.producer_name, model.producer_version = "edgeq", None
    return model
