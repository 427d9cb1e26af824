"""Concat gives all that it joins one scale: where one part is far smaller than another, nothing is left of it.

The head of a detector is where users meet that: coordinates up to 640 and scores up to 1 in one tensor of 8 bits, and
the package finds nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgeq.graph import constant_array
from edgeq.qtypes import NodeFormat
from edgeq.roles import is_float
from edgeq.stages.choose.kernels import formats_of
from edgeq.stages.choose.layout import Layout
from edgeq.target import TargetProfile

__all__ = ["UnequalJoin", "find_unequal_joins", "integer_joins", "joined_parts"]

_APART = 16.0
"""From this ratio of the largest magnitudes on, 8 bits are at most 4 for the smaller part."""

_FLOAT = NodeFormat(None, None)


@dataclass(frozen=True)
class UnequalJoin:
    """A Concat that gets a ``format`` of its own, as the largest magnitudes that it joins differ ``ratio`` times."""

    node: str
    format: NodeFormat
    ratio: float

    def describe(self) -> str:
        """In words, for the report."""
        how = "stays float" if self.format.floating else f"has {self.format.activation_bits} bits"
        return f"{self.node} joins tensors that differ {self.ratio:.0f} times in magnitude: it {how}"


def integer_joins(model: ir.Model, layout: Layout) -> tuple[ir.Node, ...]:
    """The Concat nodes that join activations in 8 bits or less, but for those with a format of their own."""
    return tuple(
        node
        for node in model.graph
        if node.op_type == "Concat"
        and len(joined_parts(node)) > 1
        and (name := str(node.name)) in layout.integer
        and name not in layout.formats
        and (layout.bits_in(name) or 16) <= 8
    )


def find_unequal_joins(
    joins: Sequence[ir.Node], layout: Layout, peaks: Mapping[str, float], target: TargetProfile
) -> tuple[UnequalJoin, ...]:
    """Those of ``joins`` for which one scale is too coarse, and what each gets instead.

    That is float where no integer kernel reads the result, else 16 bits where ``target`` has them, else float.

    Args:
        joins: What ``integer_joins`` found.
        layout: How the nodes of the graph would run.
        peaks: The largest magnitude of each tensor that is joined.
        target: Whose kernels they are.
    """
    found = []
    for node in joins:
        sizes = [peaks[name] for value in joined_parts(node) if peaks.get(name := str(value.name), 0.0) > 0]
        ratio = max(sizes) / min(sizes) if sizes else 1.0
        if ratio < _APART:
            continue
        read = any(str(use.node.name) in layout.integer for use in node.outputs[0].uses())
        wider = (one for one in formats_of(node, target, layout.scheme) if one.activation_bits == 16)
        found.append(UnequalJoin(str(node.name), next(wider, _FLOAT) if read else _FLOAT, ratio))
    return tuple(found)


def joined_parts(node: ir.Node) -> list[ir.Value]:
    """The activations that are joined; constants have peaks of their own, which nobody measures."""
    return [value for value in node.inputs if value is not None and is_float(value) and constant_array(value) is None]
