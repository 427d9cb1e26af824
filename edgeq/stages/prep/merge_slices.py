"""A Slice of a Slice along other axes becomes one Slice."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.stages.prep.rewrite import NodePass, add_initializer, constant_ints, is_node, opset, replace

__all__ = ["MergeSlices"]


class MergeSlices(NodePass):
    """Patch merging is written as ``x[:, 0::2][:, :, 1::2]``.

    Stays: computed bounds, slices along the same axis, and a first Slice that anything but another
    Slice reads.
    """

    name = "merge slices"
    ops = frozenset({"Slice"})

    def rewrite(self, node: ir.Node) -> bool:
        value = node.inputs[0]
        before = value.producer() if value is not None else None
        if value is None or before is None or not is_node(before, "Slice") or opset(node) < 10:
            return False
        if value.is_graph_output() or not all(is_node(reader, "Slice") for reader in value.consumers()):
            return False
        inner, outer = _bounds(before), _bounds(node)
        if inner is None or outer is None or {axis for axis, *_ in inner} & {axis for axis, *_ in outer}:
            return False
        axes, starts, ends, steps = (np.array(column, np.int64) for column in zip(*inner, *outer, strict=True))
        bounds = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
        operands = [add_initializer(node, f"{node.name}.{name}", array) for name, array in bounds.items()]
        replace(node, "Slice", [before.inputs[0], *operands])
        return True


def _bounds(node: ir.Node) -> list[tuple[int, int, int, int]] | None:
    """``(axis, start, end, step)`` of every sliced axis, counted from the front."""
    starts, ends, axes = (constant_ints(node, name, i) for i, name in enumerate(("starts", "ends", "axes"), 1))
    steps = constant_ints(node, "steps", 4)
    shape = node.outputs[0].shape
    if starts is None or ends is None or shape is None:
        return None
    if len(node.inputs) > 3 and node.inputs[3] is not None and axes is None:
        return None
    if len(node.inputs) > 4 and node.inputs[4] is not None and steps is None:
        return None
    positive = [axis % len(shape) for axis in axes or range(len(starts))]
    return list(zip(positive, starts, ends, steps or (1,) * len(starts), strict=True))
