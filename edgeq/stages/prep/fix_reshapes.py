"""A Reshape whose target is computed from dynamic dimensions gets a constant one, where 0 and -1 can say it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.rewrite import NodePass, add_initializer, opset

__all__ = ["FixReshapes"]


class FixReshapes(NodePass):
    """``[batch, length, 384] -> [batch, length, 12, 32]`` is ``[0, 0, 12, 32]``, without Shape and Concat.

    A dimension at its old place under its old name is 0 (copied), and at most one other dynamic
    dimension is -1. Equal names mean equal sizes in ONNX. ``allowzero``, which few providers know,
    goes where the target holds no zero.
    """

    name = "fix reshapes"
    ops = frozenset({"Reshape"})

    def rewrite(self, node: ir.Node) -> bool:
        known = constant_array(node.inputs[1])
        if known is not None:
            if "allowzero" not in node.attributes or (node.attributes.get_int("allowzero", 0) != 0 and 0 in known):
                return False
            node.attributes.pop("allowzero")
            return True
        value, output = node.inputs[0], node.outputs[0]
        if opset(node) < 5 or value is None or value.shape is None or output.shape is None:
            return False
        target = [_entry(dim, index, value.shape) for index, dim in enumerate(output.shape)]
        # A dimension of size 0 cannot be written: 0 means "copy".
        if target.count(-1) > 1 or 0 in list(output.shape):
            return False
        node.replace_input_with(1, add_initializer(node, f"{node.name}.shape", np.array(target, np.int64)))
        node.attributes.pop("allowzero", None)
        return True


def _entry(dim: int | ir.SymbolicDim, index: int, source: ir.Shape) -> int:
    if isinstance(dim, int):
        return dim
    same_place = index < len(source) and dim.value is not None and source[index] == dim
    return 0 if same_place else -1
