"""Remove what no output depends on: nodes, optional outputs, initializers, functions, opset imports."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from edgeq.stages.prep.rewrite import PrepPass

__all__ = ["RemoveUnused"]


class RemoveUnused(PrepPass):
    """Dead code elimination; the model's inputs stay, used or not."""

    name = "remove unused"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = _slots(model)
        modified = common.RemoveUnusedNodesPass()(model).modified
        modified |= common.RemoveUnusedFunctionsPass()(model).modified
        modified |= common.RemoveUnusedOpsetsPass()(model).modified
        # The library's pass does not count optional inputs and outputs that it drops.
        return ir.passes.PassResult(model, modified or _slots(model) != before)


def _slots(model: ir.Model) -> int:
    return sum(len(node.inputs) + sum(bool(o.name) for o in node.outputs) for node in model.graph.all_nodes())
