"""Shape and Size of values whose dimensions are known become constants.

``Gather(Shape(x), 1)`` needs dimension 1 only: it folds even if the batch is dynamic.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.rewrite import NodePass, add_initializer, bypass, constant_ints, is_node, static_shape

__all__ = ["FoldShapes"]


class FoldShapes(NodePass):
    """Folds Shape, Size, and Gather or Slice of the known part of a Shape."""

    name = "fold shapes"
    ops = frozenset({"Shape", "Size", "Gather", "Slice"})

    def rewrite(self, node: ir.Node) -> bool:
        result = _RESULT[node.op_type](node)
        if result is None or node.outputs[0].is_graph_output():
            return False
        return bypass(node, add_initializer(node, str(node.outputs[0].name), result))


def _shape(node: ir.Node) -> np.ndarray | None:
    dims = _dims(node)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        return None
    return np.array(dims, np.int64)


def _size(node: ir.Node) -> np.ndarray | None:
    shape = static_shape(node.inputs[0])
    return None if shape is None else np.array(int(np.prod(shape)), np.int64)


def _gather(node: ir.Node) -> np.ndarray | None:
    dims, indices = _source_dims(node), constant_array(node.inputs[1])
    if dims is None or indices is None or not all(-len(dims) <= int(i) < len(dims) for i in indices.flat):
        return None
    picked = [dims[int(i)] for i in indices.flat]
    if not all(isinstance(dim, int) for dim in picked):
        return None
    return np.array(picked, np.int64).reshape(indices.shape)


def _slice(node: ir.Node) -> np.ndarray | None:
    dims = _source_dims(node)
    starts, ends = constant_ints(node, "starts", 1), constant_ints(node, "ends", 2)
    steps = constant_ints(node, "steps", 4) if len(node.inputs) > 4 else (1,)
    if dims is None or starts is None or ends is None or steps is None or len(starts) != 1:
        return None
    picked = dims[slice(starts[0], ends[0], steps[0])] if steps[0] > 0 else (None,)
    return np.array(picked, np.int64) if all(isinstance(dim, int) for dim in picked) else None


_RESULT = {"Shape": _shape, "Size": _size, "Gather": _gather, "Slice": _slice}


def _source_dims(node: ir.Node) -> tuple[int | ir.SymbolicDim, ...] | None:
    """The dimensions behind a node that reads the output of Shape."""
    producer = node.inputs[0].producer() if node.inputs[0] is not None else None
    return _dims(producer) if producer is not None and is_node(producer, "Shape") else None


def _dims(node: ir.Node) -> tuple[int | ir.SymbolicDim, ...] | None:
    """What a Shape node gives, dimension by dimension."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(value.shape))
    return tuple(value.shape)[start:end]
