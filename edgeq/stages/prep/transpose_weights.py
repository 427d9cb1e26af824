"""Gemm with a transposed constant weight takes the weight as it is multiplied: ``transB = 0``.

ONNX Runtime's integer and weight-only kernels do not fuse ``transB = 1``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.rewrite import NodePass, change_constant

__all__ = ["TransposeWeights"]


class TransposeWeights(NodePass):
    """``Gemm(A, B, transB=1)`` -> ``Gemm(A, B.T)``; a weight that another node reads is copied."""

    name = "transpose weights"
    effect = "reorders"
    ops = frozenset({"Gemm"})

    def rewrite(self, node: ir.Node) -> bool:
        if not node.attributes.get_int("transB", 0):
            return False
        weight = constant_array(node.inputs[1])
        if weight is None or weight.ndim != 2:
            return False
        change_constant(node, 1, np.ascontiguousarray(weight.T))
        node.attributes.pop("transB")
        return True
