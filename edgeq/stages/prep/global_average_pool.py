"""The mean over all spatial axes is GlobalAveragePool, which every provider has in integers."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.stages.prep.rewrite import NodePass, constant_ints, replace

__all__ = ["UseGlobalAveragePool"]


class UseGlobalAveragePool(NodePass):
    """ReduceMean over axes 2.. of an image or volume; without ``keepdims`` a Flatten follows.

    Tensors of rank 3 are left alone: the mean over their last axis is how a layer norm begins.
    """

    name = "use GlobalAveragePool"
    effect = "reorders"
    ops = frozenset({"ReduceMean"})

    def rewrite(self, node: ir.Node) -> bool:
        value, axes = node.inputs[0], constant_ints(node, "axes", 1)
        if value is None or value.shape is None or axes is None or value.dtype is None:
            return False
        rank = len(value.shape)
        spatial = list(range(2, rank))
        if rank not in (4, 5) or sorted(axis % rank for axis in axes) != spatial:
            return False
        if not value.dtype.is_floating_point():
            return False
        if node.attributes.get_int("keepdims", 1):
            replace(node, "GlobalAveragePool", [value])
            return True
        if node.graph is None:
            return False
        pool = ir.node("GlobalAveragePool", [value], name=f"{node.name}.pool")
        pool.outputs[0].name = f"{node.outputs[0].name}.pool"
        pool.outputs[0].dtype = value.dtype
        pool.outputs[0].shape = ir.Shape([*list(value.shape)[:2], *[1 for _ in spatial]])
        node.graph.insert_before(node, pool)
        replace(node, "Flatten", [pool.outputs[0]], {"axis": 1})
        return True
