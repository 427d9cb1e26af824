"""Chains of Reshape, Flatten, Squeeze and Unsqueeze become one Reshape; chains of Transpose one Transpose."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.prep.rewrite import NodePass, add_initializer, is_node, opset, replace, sole_consumer

__all__ = ["MergeViews"]

_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


class MergeViews(NodePass):
    """The last node of a chain reads the chain's source.

    Needs the final shape with at most one unknown dimension, since a Reshape's constant can say
    "-1" once.
    """

    name = "merge views"
    ops = frozenset({*_VIEWS, "Transpose"})

    def rewrite(self, node: ir.Node) -> bool:
        value = node.inputs[0]
        before = value.producer() if value is not None else None
        if value is None or before is None:
            return False
        if node.op_type == "Transpose":
            return is_node(before, "Transpose") and _merge_transposes(node, before)
        if not is_node(before, *_VIEWS) or sole_consumer(value) is not node or opset(node) < 5:
            return False
        target = reshape_target(node.outputs[0])
        if target is None:
            return False
        shape = add_initializer(node, f"{node.name}.shape", np.array(target, np.int64))
        replace(node, "Reshape", [before.inputs[0], shape])
        return True


def _merge_transposes(node: ir.Node, before: ir.Node) -> bool:
    inner, outer = before.attributes.get_ints("perm", None), node.attributes.get_ints("perm", None)
    if inner is None or outer is None:
        return False
    # out[i] = mid[outer[i]] = in[inner[outer[i]]]
    replace(node, "Transpose", [before.inputs[0]], {"perm": [int(inner[axis]) for axis in outer]})
    return True


def reshape_target(value: ir.Value) -> list[int] | None:
    """The constant that reshapes to ``value``'s shape; None if it has two unknown dimensions or an empty one."""
    if value.shape is None:
        return None
    target = [dim if isinstance(dim, int) else -1 for dim in value.shape]
    return None if target.count(-1) > 1 or 0 in target else target
