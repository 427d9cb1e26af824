"""``Clip(x + 3, 0, 6) / 6`` is HardSigmoid: two kernels less in every hard swish and squeeze-excite block."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.merge_clips import interval, number
from edgeq.stages.prep.rewrite import NodePass, graph_of, is_node, replace, sole_consumer

__all__ = ["UseHardSigmoid"]


class UseHardSigmoid(NodePass):
    """``Clip(x + b, 0, h) / h`` -> ``HardSigmoid(x)`` with alpha 1/h and beta b/h (ONNX operator 6 and 22).

    Also ``y * Clip(x + b, 0, h) / h`` -> ``y * HardSigmoid(x)``, as exporters without an operator
    for hard swish (Howard et al. 2019, arXiv 1905.02244, section 5.2) write it. All constants are
    one number each; nothing else may read what lies between.
    """

    name = "use HardSigmoid"
    effect = "reorders"
    ops = frozenset({"Div", "Mul"})

    def rewrite(self, node: ir.Node) -> bool:
        scaled = _scaled(node)
        if scaled is None or node.outputs[0].dtype != ir.DataType.FLOAT:
            return False
        source, factor = scaled
        inner = source.producer()
        if inner is None or sole_consumer(source) is not node:
            return False
        if is_node(inner, "Mul"):
            for side in (0, 1):
                gate = _gate(inner.inputs[side], inner, factor)
                if gate is None:
                    continue
                new = ir.node("HardSigmoid", [gate[0]], gate[1], name=f"{inner.name}.gate")
                clipped = inner.inputs[side]
                new.outputs[0].name = f"{node.outputs[0].name}.gate"
                new.outputs[0].type, new.outputs[0].shape = clipped.type, clipped.shape  # type: ignore[union-attr]
                graph_of(node).insert_before(node, new)
                replace(node, "Mul", [inner.inputs[1 - side], new.outputs[0]])
                return True
            return False
        gate = _gate(source, node, factor)
        if gate is None:
            return False
        replace(node, "HardSigmoid", [gate[0]], gate[1])
        return True


def _scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """What ``node`` multiplies by one number, and that number."""
    for side in (1, 0) if node.op_type == "Mul" else (1,):
        factor, source = number(node.inputs[side]), node.inputs[1 - side]
        if factor and source is not None and _is_scalar(node.inputs[side], source):
            return source, factor if node.op_type == "Mul" else 1 / factor
    return None


def _gate(value: ir.Value | None, reader: ir.Node, factor: float) -> tuple[ir.Value, dict[str, float]] | None:
    """``x`` and HardSigmoid's attributes, if ``value`` is ``Clip(x + b, 0, 1 / factor)``, read by ``reader`` alone."""
    clip = value.producer() if value is not None else None
    if value is None or clip is None or not is_node(clip, "Clip", "Min", "Max") or sole_consumer(value) is not reader:
        return None
    found = interval(clip)
    if found is None or found.lo != 0 or not np.isclose(found.hi * factor, 1, rtol=1e-6, atol=0):
        return None
    add = found.source.producer()
    if add is None or not is_node(add, "Add") or sole_consumer(found.source) is not clip:
        return None
    for side in (1, 0):
        offset, source = number(add.inputs[side]), add.inputs[1 - side]
        if offset is not None and source is not None and _is_scalar(add.inputs[side], source):
            return source, {"alpha": 1 / found.hi, "beta": offset / found.hi}
    return None


def _is_scalar(constant: ir.Value | None, beside: ir.Value) -> bool:
    """True if the constant adds no dimension to ``beside``."""
    array = constant_array(constant)
    rank = None if beside.shape is None else len(beside.shape)
    return array is not None and (array.ndim == 0 or (rank is not None and array.ndim <= rank))
