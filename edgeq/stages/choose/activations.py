"""Scales and zero points of activations: from statistics, fixed ranges, shared owners, and between widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from edgeq.affine import range_to_qparams
from edgeq.errors import ConfigError
from edgeq.graph import constant_array
from edgeq.qtypes import Decision, IntType, QParams, TensorSpec, TensorStats
from edgeq.roles import roles_of
from edgeq.stages.choose.dead_zones import cut_by_clip, live_range
from edgeq.stages.choose.layout import Layout
from edgeq.stages.choose.ranges import RANGE_METHODS
from edgeq.target import Capability, TargetProfile

__all__ = ["MASK_THRESHOLD", "ActivationPlanner"]

MASK_THRESHOLD = 1e30
"""Magnitudes beyond this only mask (attention masks of -3.4e38); no integer grid may stretch so far."""

_SHADE = 1.001
"""By how much a tensor that is kept apart has a wider range: enough to be another one, and next to no loss."""


@dataclass
class ActivationPlanner:
    """Decides about activations, in graph order.

    ``decisions`` are those so far, ``activations`` the parameters by tensor, ``converted`` those of tensors
    that a node reads in another width, by tensor and node, ``demoted`` the tensors that stay float against
    the layout, each with its reason.
    """

    model: ir.Model
    layout: Layout
    stats: Mapping[str, TensorStats]
    target: TargetProfile
    range_method: str
    decisions: list[Decision] = field(default_factory=list)
    activations: dict[str, QParams] = field(default_factory=dict)
    converted: dict[tuple[str, str], QParams] = field(default_factory=dict)
    demoted: dict[str, str] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, ir.Node]:
        return {str(node.name): node for node in self.model.graph}

    @cached_property
    def values(self) -> dict[str, ir.Value]:
        return {str(output.name): output for node in self.model.graph for output in node.outputs}

    def decide(self) -> None:
        """About every activation of the layout; what single nodes read otherwise comes later."""
        for tensor, readers in self.layout.activations.items():
            self._activation(tensor, readers)
        for tensor in self.layout.activations:
            self._change_width(tensor)
        for tensor, nodes in self.layout.ranged.items():
            reason = "its range is found at run time"
            self.decisions.append(Decision(tensor, "activation", nodes, "dynamic range", skip_reason=reason))

    def _activation(self, tensor: str, readers: tuple[str, ...]) -> None:
        owner = self.layout.owner[tensor]
        if owner != tensor and owner in self.activations:
            self.activations[tensor] = self.activations[owner]
            rule = f"shares the scale of {owner}: the data only moves"
            self.decisions.append(Decision(tensor, "activation", readers, rule, self.activations[tensor], shares=owner))
            return
        dtype = self.activation_type(self.layout.bits_of(owner))
        spec = self.activation_spec(dtype)
        fixed, producer = self._fixed_range(owner)
        if owner in self.layout.constants:
            qparams = self.operand_qparams(self._constant(owner), dtype)
            self.activations[tensor] = self.activations[owner] = qparams
            rule = f"shares the scale of {owner}: rows of a constant"
            self.decisions.append(Decision(tensor, "activation", readers, rule, qparams, shares=owner))
            return
        if fixed is not None:
            low, high = fixed
            rule = f"fixed range of {producer}"
        else:
            seen = self.stats.get(owner)
            if seen is None or seen.masked or max(-seen.lo, seen.hi) >= MASK_THRESHOLD:
                reason = (
                    "calibration never saw this tensor"
                    if seen is None
                    else f"it holds mask values of {min(seen.lo, -seen.hi):.3g}, which no integer grid can reach"
                )
                self.demoted[tensor] = reason
                self.decisions.append(Decision(tensor, "activation", readers, "mask guard", skip_reason=reason))
                return
            low, high = RANGE_METHODS[self.range_method](seen, spec)
            rule = f"{self.range_method} range"
            least, most = self._live_range(owner)
            if low < least or high > most:
                low, high = max(low, least), min(high, most)
                rule += f", cut to {low:.3g} .. {high:.3g}: what reads it is constant beyond"
        if high - low < self.target.activations.min_range:
            high = low + self.target.activations.min_range
        qparams = self._cut_by_absorbed_clip(owner, range_to_qparams(low, high, spec))
        self.activations[tensor] = qparams
        self.decisions.append(Decision(tensor, "activation", readers, rule, qparams))

    def _cut_by_absorbed_clip(self, tensor: str, qparams: QParams) -> QParams:
        """Where the integers' ends do the work of a Clip, they must not reach beyond it."""
        rules = self.target.activations
        producer = self.values[tensor].producer() if tensor in self.values else None
        if producer is None or producer.op_type != "Clip" or str(producer.name) not in self.layout.absorbed:
            return qparams
        return qparams if rules.absorption == "kernel" or rules.scale != "any" else cut_by_clip(producer, qparams)

    def _live_range(self, tensor: str) -> tuple[float, float]:
        """Where the readers of a tensor look; everywhere, if other tensors share its scale."""
        value = self.values.get(tensor)
        return (-np.inf, np.inf) if value is None or tensor in self._shared else live_range(value)

    @cached_property
    def _shared(self) -> frozenset[str]:
        return frozenset(owner for name, owner in self.layout.owner.items() if owner != name)

    def _change_width(self, tensor: str) -> None:
        """Whoever reads a tensor in another width than it has gets it converted, all of one width together."""
        held, width = self.activations.get(tensor), self.layout.bits_of(tensor)
        changed: dict[int, list[str]] = {}
        for reader in self.layout.activations[tensor]:
            bits, capability = self.layout.bits_in(reader), self.layout.integer.get(reader)
            if held is None or capability is None or bits is None or bits == width:
                continue
            # A product of two activations may want its second one in a type of its own; that is decided there.
            if tensor != self._second_operand(reader) or str(bits) not in capability.operand_types:
                changed.setdefault(bits, []).append(reader)
        for bits, readers in changed.items():
            assert held is not None
            spec = self.activation_spec(self.activation_type(bits))
            qparams = range_to_qparams(*held.real_range, spec)
            self.converted.update({(tensor, reader): qparams for reader in readers})
            rule = f"converted from {width} to {bits} bits for nodes of another width"
            self.decisions.append(Decision(tensor, "operand", tuple(readers), rule, qparams))

    def _second_operand(self, name: str) -> str | None:
        node = self.by_name[name]
        position = roles_of(node.op_type).weight
        value = node.inputs[position] if position is not None and len(node.inputs) > position else None
        return None if value is None else value.name

    def read(self, node: ir.Node, value: ir.Value | None) -> QParams | None:
        """The integers that ``node`` reads an activation in."""
        if value is None:
            return None
        return self.converted.get((str(value.name), str(node.name)), self.activations.get(str(value.name)))

    def activation_type(self, width: int | None) -> IntType:
        bits = str(width)
        name = self.target.activations.types.get(bits)
        if name is None:
            raise ConfigError(
                f"{self.target.name} has no {bits}-bit activations; it has {', '.join(self.target.activations.types)}",
                remedy=f"choose one of the target's precisions: {', '.join(self.target.precisions)}",
            )
        return IntType.parse(name)

    def _fixed_range(self, tensor: str) -> tuple[tuple[float, float] | None, str]:
        producer = self.values[tensor].producer() if tensor in self.values else None
        found = None if producer is None else self.target.fixed_range(producer.op_type)
        if producer is None or found is None:
            return None, ""
        low, high = found
        # The end is exclusive: 8-bit Softmax has the scale 1/256, as kernels expect it; 1/128 where half
        # of the levels are for negative numbers.
        bits = self.layout.bits_of(tensor) or 8
        if self.target.activations.symmetric:
            share = 1 - 2.0 ** (1 - bits)
            return (low * share, high * share), producer.op_type
        return (low, high - (high - low) / 2**bits), producer.op_type

    def convert(self, node: ir.Node, value: ir.Value | None, capability: Capability) -> None:
        """An activation in the weight's place, in the type that the kernel multiplies without loss."""
        name = capability.operand_types.get(str(self.layout.bits_in(str(node.name))))
        held = None if value is None else self.activations.get(str(value.name))
        if name is None or value is None or held is None:
            return
        dtype = IntType.parse(name)
        spec = replace(self.activation_spec(dtype), symmetric=dtype.signed or self.target.activations.symmetric)
        qparams = range_to_qparams(*held.real_range, spec)
        rule = f"converted to {name} in front of {node.op_type}"
        self.decisions.append(Decision(str(value.name), "operand", (str(node.name),), rule, qparams))

    def keep_apart(self, node: ir.Node, capability: Capability) -> None:
        """Requantize an input that others read, too: a provider does not merge what reads different tensors."""
        if self.layout.bits_in(str(node.name)) not in capability.apart or node.inputs[0] is None:
            return
        name = str(node.inputs[0].name)
        held = self.activations.get(name)
        if held is None or len(self.layout.activations[name]) < 2 or (name, str(node.name)) in self.converted:
            return
        low, high = held.real_range
        qparams = range_to_qparams(low * _SHADE, high * _SHADE, held.spec)
        rule = f"requantized in front of {node.op_type}, which the provider merges wrongly with its neighbours"
        self.decisions.append(Decision(name, "operand", (str(node.name),), rule, qparams))

    def activation_spec(self, dtype: IntType) -> TensorSpec:
        rules = self.target.activations
        return TensorSpec(dtype, rules.symmetric, power_of_two=rules.scale == "power-of-two")

    def operand_qparams(self, array: np.ndarray, dtype: IntType) -> QParams:
        spec = self.activation_spec(dtype)
        low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
        return range_to_qparams(low, max(high, low + self.target.activations.min_range), spec)

    def _constant(self, name: str) -> np.ndarray:
        array = constant_array(self.model.graph.initializers[name])
        assert array is not None
        return array
