"""Replace calls of model-local functions by the functions' bodies."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgeq.stages.prep.rewrite import PrepPass

__all__ = ["InlineFunctions"]


class InlineFunctions(PrepPass):
    """Exporters write some operators as functions; no pass below looks into one."""

    name = "inline functions"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not model.functions:
            return ir.passes.PassResult(model, False)
        return ir.passes.PassResult(model, common.InlinePass()(model).modified)
