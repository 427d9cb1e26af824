"""Chains of Reshape, Flatten, Squeeze and Unsqueeze become one Reshape; chains of Transpose one Transpose.

A Transpose that only moves axes of size 1 copies nothing: it is a Reshape too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.stages.prep.rewrite import NodePass, add_initializer, is_node, opset, replace, sole_consumer

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
        if node.op_type == "Transpose":
            if before is not None and is_node(before, "Transpose") and _merge_transposes(node, before):
                return True
            return _moves_nothing(node) and _reshape(node, value)
        if value is None or before is None or not is_node(before, *_VIEWS) or sole_consumer(value) is not node:
            return False
        return _reshape(node, before.inputs[0])


def _reshape(node: ir.Node, source: ir.Value | None) -> bool:
    """Replace ``node`` by a Reshape of ``source``, if a constant can say the target."""
    target = reshape_target(node.outputs[0])
    if target is None or opset(node) < 5:
        return False
    shape = add_initializer(node, f"{node.name}.shape", np.array(target, np.int64))
    replace(node, "Reshape", [source, shape])
    return True


def _moves_nothing(node: ir.Node) -> bool:
    """True if the axes that a Transpose reorders have, all but one at a time, the size 1."""
    shape, perm = node.inputs[0].shape if node.inputs[0] is not None else None, node.attributes.get_ints("perm", None)
    if shape is None or perm is None or list(perm) == sorted(perm):
        return False
    moved = [axis for axis in perm if shape[axis] != 1]
    return moved == sorted(moved)


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
