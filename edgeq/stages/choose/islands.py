"""Which nodes of a float16 graph stay float32, and why: where its range or its 11 bits do not suffice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.float16 import LARGEST, NO_BOUND, half_form, lost
from edgeq.graph import constant_array, outer_nodes
from edgeq.qtypes import NodeForecast
from edgeq.target import TargetProfile

__all__ = ["find_islands", "forecast_floats"]

_HEADROOM = 2.0
"""Samples do not show everything: a tensor may come out twice as large as seen."""

_CONSTANT_LOSS = 0.01
"""A constant may lose this part of itself: 1e-5 still has it in float16's subnormal numbers, 1e-7 has not."""

_EXACT = 2048.0
"""Up to here float16 holds every integer."""

_ANGLE = 16.0
"""Beyond it neighbouring float16 numbers are 1/64 and more apart: too coarse for an angle."""

_SQUARES = frozenset(
    {"GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "ReduceL2",
     "ReduceSumSquare", "RMSNormalization"}
)  # fmt: skip
"""Operators that square what they read."""

_SUMS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceLogSumExp", "ReduceMean", "ReduceSum"})
"""Operators that may add everything up in the type of their output."""

_DIVIDED_BY = frozenset({"Div", "Log", "Reciprocal", "Sqrt"})
"""Operators for which a small constant matters as much as a large one."""

_ELEMENTWISE = frozenset(
    {"Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "Div", "Exp", "Expand", "Floor", "Gather", "Log", "Max", "Min",
     "Mod", "Mul", "Neg", "Pow", "Range", "Reciprocal", "Reshape", "Round", "Slice", "Split", "Sqrt", "Squeeze",
     "Sub", "Tile", "Transpose", "Unsqueeze", "Where"}
)  # fmt: skip
"""What lies between numbers that count or place and the layers that computed them."""


_EPSILON = ("Add",)
_NORM_STEPS = (("ReduceMean", "ReduceSum"), _EPSILON, ("Sqrt",), ("Reciprocal",))
"""What stands behind a square in a normalization that an exporter wrote out; the epsilon may be missing."""


def find_islands(model: ir.Model, peaks: Mapping[str, float], target: TargetProfile) -> dict[str, str]:
    """By name, the nodes of the main graph that must stay float32, each with its reason.

    ``peaks`` holds the largest magnitude that was seen of each float tensor, or nothing of it.
    """
    search = _Search(model, peaks, target)
    for node in model.graph:
        reason = search.reason(node)
        if reason is not None:
            search.islands.setdefault(str(node.name), reason)
    search.spread()
    return {str(n.name): search.islands[str(n.name)] for n in model.graph if str(n.name) in search.islands}


def forecast_floats(nodes: Mapping[str, NodeForecast], islands: Mapping[str, str]) -> dict[str, NodeForecast]:
    """``nodes`` with the type that their floats have: float16, or float32 and why."""
    described = {}
    for name, node in nodes.items():
        kind = f"in float32: {islands[name]}" if name in islands else "in float16"
        why = "; ".join(part for part in (*node.why.split("; "), kind) if part != "fp16 quantizes nothing")
        described[name] = msgspec.structs.replace(node, why=why) if node.kind == "float" else node
    return described


class _Search:
    def __init__(self, model: ir.Model, peaks: Mapping[str, float], target: TargetProfile) -> None:
        self.model = model
        self.peaks = peaks
        self.opset = model.opset_imports.get("", 1)
        self.float32_only = {op for c in target.capability if c.float32_only for op in c.ops}
        self.provider = target.provider.name
        self.holders = set(outer_nodes(model).values())
        self.islands: dict[str, str] = {}

    def reason(self, node: ir.Node) -> str | None:
        """Why ``node`` by itself stays float32, or None."""
        if not any(_is_float(value) for value in (*node.inputs, *node.outputs)):
            return None
        if node in self.holders:
            return f"{node.op_type} and the nodes inside it stay float32"
        form = half_form(node, self.opset)
        if isinstance(form, str):
            return form
        if node.op_type in self.float32_only:
            return f"{self.provider} runs {node.op_type} in float32 only"
        return self._constant(node) or self._range(node) or self._sum(node) or self._exact(node)

    def _peak(self, value: ir.Value | None) -> float:
        """The largest magnitude that was seen, or 0; what only masks has none."""
        peak = 0.0 if value is None or not _is_float(value) else self.peaks.get(str(value.name), 0.0)
        return 0.0 if peak >= NO_BOUND else peak

    def _constant(self, node: ir.Node) -> str | None:
        for value in node.inputs:
            array = constant_array(value)
            if value is None or array is None or array.dtype != np.float32:
                continue
            if lost(array, each=array.size == 1 or node.op_type in _DIVIDED_BY) > _CONSTANT_LOSS:
                small = float(np.abs(array[array != 0]).min())
                return f"its constant {value.name} holds {small:.3g}, which float16 cannot"
        return None

    def _range(self, node: ir.Node) -> str | None:
        for value in (*node.inputs, *node.outputs):
            if (peak := self._peak(value)) * _HEADROOM > LARGEST:
                return f"{value.name} reaches {peak:.3g}, and float16 ends at 65504"  # type: ignore[union-attr]
        return None

    def _sum(self, node: ir.Node) -> str | None:
        peak = self._peak(node.inputs[0]) if node.inputs else 0.0
        if node.op_type in _SQUARES and peak * peak > LARGEST:
            return f"it squares numbers of up to {peak:.3g}, and float16 ends at 65504"
        if node.op_type in _SUMS and peak * (count := _added(node)) > LARGEST:
            return f"it adds up {count} numbers of up to {peak:.3g}, and float16 ends at 65504"
        if node.op_type == "CumSum":
            return "a running sum in float16 stops growing"
        return None

    def _exact(self, node: ir.Node) -> str | None:
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Cast" and not _is_float(source) and (peak := self._peak(node.outputs[0])) > _EXACT:
            return f"it makes integers of up to {peak:.0f}, and float16 is exact to 2048"
        if node.op_type in ("Sin", "Cos", "Tan") and (peak := self._peak(source)) > _ANGLE:
            return f"its angles reach {peak:.3g}, where float16 is too coarse"
        return None

    # -- what belongs to an island, too

    def spread(self) -> None:
        """Numbers that become integers or places, angles, and means of squares: float32 from where they begin."""
        for node in self.model.graph:
            if node.op_type == "Cast" and _is_float(node.inputs[0]) and not _is_float(node.outputs[0]):
                self._mark(node.inputs[0], "an integer is made of its result")
            elif node.op_type in ("Range", "NonMaxSuppression"):
                for value in node.inputs:
                    self._mark(value, f"{node.op_type} reads its result in float32")
            elif node.op_type == "Resize":
                for value in node.inputs[1:3]:
                    self._mark(value, "Resize reads its result in float32")
            elif node.op_type in ("Sin", "Cos", "Tan") and str(node.name) in self.islands:
                self._mark(node.inputs[0], "an angle comes of its result", also=frozenset({"MatMul", "Einsum"}))
            elif _is_square(node):
                self._mean_of_squares(node)

    def _mark(self, value: ir.Value | None, why: str, also: frozenset[str] = frozenset()) -> None:
        for node in _behind(value, _ELEMENTWISE | also):
            self.islands.setdefault(str(node.name), why)

    def _mean_of_squares(self, square: ir.Node) -> None:
        """A square, its mean, the epsilon and the root: float16 has no room for squares, large or small ones."""
        chain = [square]
        for wanted in _NORM_STEPS:
            users = [node for node, _ in chain[-1].outputs[0].uses() if node.graph is square.graph]
            follower = next((node for node in users if node.op_type in wanted), None)
            if follower is not None:
                chain.append(follower)
            elif wanted is not _EPSILON:
                break
        for node in chain if len(chain) > 1 else ():
            self.islands.setdefault(str(node.name), "a mean of squares needs more range than float16 has")


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1] and _is_float(node.inputs[0])
    exponent = constant_array(node.inputs[1]) if node.op_type == "Pow" else None
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0


def _behind(value: ir.Value | None, through: frozenset[str]) -> Iterator[ir.Node]:
    """The nodes that compute the float tensor ``value``, back to the first that is not in ``through``."""
    waiting, seen = [value], set()
    while waiting:
        current = waiting.pop()
        node = current.producer() if current is not None and _is_float(current) else None
        if node is None or node in seen or node.op_type not in through:
            continue
        seen.add(node)
        yield node
        waiting.extend(node.inputs)


def _added(node: ir.Node) -> int:
    """How many numbers go into one of the result; 1 where the shapes do not tell."""
    if node.op_type == "AveragePool":
        return math.prod(node.attributes.get_ints("kernel_shape", ()))
    shapes = [value.shape for value in (node.inputs[0], node.outputs[0]) if value is not None]
    sizes = [math.prod(d for d in shape if isinstance(d, int)) for shape in shapes if shape is not None]
    return max(1, sizes[0] // max(1, sizes[1])) if len(sizes) == 2 else 1


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT
