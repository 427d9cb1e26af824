"""Relu, Clip, Min and Max with constants that follow one another become one Clip or Relu."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.stages.prep.rewrite import NodePass, add_initializer, is_node, opset, replace, sole_consumer

__all__ = ["Interval", "MergeClips", "interval", "number"]

_BOUNDING = ("Relu", "Clip", "Min", "Max")


@dataclass(frozen=True)
class Interval:
    """``source`` limited to ``lo`` .. ``hi``, one number each."""

    source: ir.Value
    lo: float
    hi: float


class MergeClips(NodePass):
    """``Min(Max(x, 0), 6)`` -> ``Clip(x, 0, 6)``; ``Clip(Relu(x), max=6)`` too; ``Max(x, 0)`` -> ``Relu(x)``.

    Stays: bounds that are computed, not one number, or in the wrong order, and integers.
    """

    name = "merge clips"
    ops = frozenset(_BOUNDING)

    def rewrite(self, node: ir.Node) -> bool:
        outer = interval(node)
        if outer is None or opset(node) < 11:
            return False
        before = outer.source.producer()
        inner = None
        if before is not None and is_node(before, *_BOUNDING) and sole_consumer(outer.source) is node:
            inner = interval(before)
        if inner is None:
            if (outer.lo, outer.hi) != (0.0, np.inf) or node.op_type == "Relu":
                return False
            replace(node, "Relu", [outer.source])
            return True
        lo, hi = max(inner.lo, outer.lo), min(inner.hi, outer.hi)
        if lo > hi or inner.source.dtype is None:
            return False
        if (lo, hi) == (0.0, np.inf):
            replace(node, "Relu", [inner.source])
            return True
        dtype = inner.source.dtype.numpy()
        bounds = [
            None if np.isinf(bound) else add_initializer(node, f"{node.name}.{name}", np.array(bound, dtype))
            for name, bound in (("min", lo), ("max", hi))
        ]
        replace(node, "Clip", [inner.source, *bounds])
        return True


def interval(node: ir.Node) -> Interval | None:
    """The source and the bounds of a node that limits a float tensor to an interval."""
    lo, hi = -np.inf, np.inf
    source = node.inputs[0]
    if node.op_type == "Relu":
        lo = 0.0
    elif node.op_type == "Clip":
        if len(node.inputs) == 1 and not node.attributes:
            return None
        bounds = [number(value) if value is not None else None for value in (*node.inputs[1:], None, None)[:2]]
        if any(value is not None and bound is None for value, bound in zip(node.inputs[1:], bounds, strict=False)):
            return None
        lo = lo if bounds[0] is None else bounds[0]
        hi = hi if bounds[1] is None else bounds[1]
    else:
        if len(node.inputs) != 2:
            return None
        first, second = (number(value) for value in node.inputs)
        bound = second if second is not None else first
        source = node.inputs[0] if second is not None else node.inputs[1]
        if bound is None or not _keeps_rank(node, source):
            return None
        lo, hi = (bound, hi) if node.op_type == "Max" else (lo, bound)
    if source is None or source.dtype is None or not source.dtype.is_floating_point() or lo > hi:
        return None
    return Interval(source, lo, hi)


def number(value: ir.Value | None) -> float | None:
    """The one number that ``value`` holds, if it is such a constant."""
    array = constant_array(value)
    return float(array.reshape(())) if array is not None and array.size == 1 and not np.isnan(array).any() else None


def _keeps_rank(node: ir.Node, source: ir.Value | None) -> bool:
    """True if the constant operand has no more dimensions than ``source``, and so does not add any."""
    ranks = [None if value is None or value.shape is None else len(value.shape) for value in node.inputs]
    constant = ranks[0] if source is node.inputs[1] else ranks[1]
    rank = ranks[1] if source is node.inputs[1] else ranks[0]
    return constant == 0 or (constant is not None and rank is not None and constant <= rank)
