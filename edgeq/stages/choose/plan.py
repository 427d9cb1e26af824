"""From a layout and statistics to a ``QuantPlan``: every number is decided here, nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec
import numpy as np
import onnx_ir as ir

from edgeq.affine import fake_quantize, range_to_qparams
from edgeq.bias import bias_decision, bias_name, corrected_bias
from edgeq.errors import ConfigError
from edgeq.float16 import half_scale
from edgeq.graph import constant_array
from edgeq.qtypes import (
    Decision,
    Granularity,
    IntType,
    NodeForecast,
    PerAxis,
    PerBlock,
    PerTensor,
    QParams,
    QuantPlan,
    TensorSpec,
    TensorStats,
)
from edgeq.roles import channel_axis, is_float, roles_of
from edgeq.stages.choose.dead_zones import cut_by_clip, live_range
from edgeq.stages.choose.forecast import forecast_nodes
from edgeq.stages.choose.layout import Layout
from edgeq.stages.choose.pairs import limit_pairs, multiplied_rows
from edgeq.stages.choose.ranges import RANGE_METHODS
from edgeq.stages.choose.weights import weight_qparams
from edgeq.target import Capability, TargetProfile

__all__ = ["MASK_THRESHOLD", "choose_plan"]

MASK_THRESHOLD = 1e30
"""Magnitudes beyond this only mask (attention masks of -3.4e38); no integer grid may stretch so far."""

_SHADE = 1.001
"""By how much a tensor that is kept apart has a wider range: enough to be another one, and next to no loss."""


def choose_plan(
    model: ir.Model,
    layout: Layout,
    stats: Mapping[str, TensorStats],
    target: TargetProfile,
    *,
    range_method: str = "mse",
    bias_correction: bool = True,
) -> QuantPlan:
    """Decide scale and zero point of every tensor in ``layout``.

    ``stats`` holds statistics for ``layout.observed`` (empty for weight-only schemes).
    ``bias_correction`` shifts biases by the mean error that quantized weights cause (Nagel et al.
    2019, arXiv 1906.04721, section 4.2), from the channel means that calibration saw.

    Raises:
        ConfigError: unknown range method, or the target has no integer type of that width.
    """
    if range_method not in RANGE_METHODS:
        raise ConfigError(f"unknown range method {range_method!r}", remedy=f"choose one of: {', '.join(RANGE_METHODS)}")
    return _Planner(model, layout, stats, target, range_method, bias_correction).plan()


@dataclass
class _Planner:
    model: ir.Model
    layout: Layout
    stats: Mapping[str, TensorStats]
    target: TargetProfile
    range_method: str
    bias_correction: bool
    decisions: list[Decision] = field(default_factory=list)
    activations: dict[str, QParams] = field(default_factory=dict)
    nodes: dict[str, NodeForecast] = field(default_factory=dict)
    converted: dict[tuple[str, str], QParams] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    demoted: dict[str, str] = field(default_factory=dict)

    @property
    def weight_only(self) -> bool:
        return self.layout.scheme.weight_only

    @cached_property
    def by_name(self) -> dict[str, ir.Node]:
        return {str(node.name): node for node in self.model.graph}

    @cached_property
    def values(self) -> dict[str, ir.Value]:
        return {str(output.name): output for node in self.model.graph for output in node.outputs}

    def plan(self) -> QuantPlan:
        if not self.layout.scheme.weight_only:
            for tensor, readers in self.layout.activations.items():
                self._activation(tensor, readers)
            for tensor in self.layout.activations:
                self._change_width(tensor)
        edges = self._edge_nodes()
        for node in self.model.graph:
            name = str(node.name)
            if name in self.layout.integer:
                self._constants(node, first_or_last=name in edges)
        self.nodes = forecast_nodes(self.model, self.layout, self.target)
        self._demote()
        return QuantPlan(
            self.target.name,
            self.layout.scheme,
            tuple(self.decisions),
            self.nodes,
            self.weights,
            self.layout.produced,
        )

    def _demote(self) -> None:
        """Nodes that were to read or to write a tensor which stays float run in float, too."""
        for tensor, reason in self.demoted.items():
            for node in self.model.graph:
                name = self.layout.absorbed.get(str(node.name), str(node.name))
                writes = tensor in self.layout.produced and any(output.name == tensor for output in node.outputs)
                reads = name in self.layout.activations[tensor]
                if (reads or writes) and name in self.layout.integer:
                    held = self.nodes[name]
                    foreseen = held.foreseen or held.kind
                    self.nodes[name] = msgspec.structs.replace(held, kind="float", why=reason, foreseen=foreseen)

    # -- activations

    def _activation(self, tensor: str, readers: tuple[str, ...]) -> None:
        owner = self.layout.owner[tensor]
        if owner != tensor and owner in self.activations:
            self.activations[tensor] = self.activations[owner]
            rule = f"shares the scale of {owner}: the data only moves"
            self.decisions.append(Decision(tensor, "activation", readers, rule, self.activations[tensor]))
            return
        dtype = self._activation_type(self.layout.bits_of(owner))
        spec = self._activation_spec(dtype)
        fixed, producer = self._fixed_range(owner)
        if owner in self.layout.constants:
            qparams = self._operand_qparams(self._constant(owner), dtype)
            self.activations[tensor] = self.activations[owner] = qparams
            rule = f"shares the scale of {owner}: rows of a constant"
            self.decisions.append(Decision(tensor, "activation", readers, rule, qparams))
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
            spec = self._activation_spec(self._activation_type(bits))
            qparams = range_to_qparams(*held.real_range, spec)
            self.converted.update({(tensor, reader): qparams for reader in readers})
            rule = f"converted from {width} to {bits} bits for nodes of another width"
            self.decisions.append(Decision(tensor, "operand", tuple(readers), rule, qparams))

    def _second_operand(self, name: str) -> str | None:
        node = self.by_name[name]
        position = roles_of(node.op_type).weight
        value = node.inputs[position] if position is not None and len(node.inputs) > position else None
        return None if value is None else value.name

    def _read(self, node: ir.Node, value: ir.Value | None) -> QParams | None:
        """The integers that ``node`` reads an activation in."""
        if value is None:
            return None
        return self.converted.get((str(value.name), str(node.name)), self.activations.get(str(value.name)))

    def _activation_type(self, width: int | None) -> IntType:
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

    # -- constants

    def _edge_nodes(self) -> frozenset[str]:
        """The first and the last heavy nodes: the ones whose errors nothing averages out.

        Below 8 bits their weights stay at 8 (the protocol of the literature, e.g. BRECQ, arXiv 2102.05426).
        """
        if self.layout.scheme.weight_bits >= 8:
            return frozenset()
        heavy = [
            str(node.name)
            for node in self.model.graph
            if str(node.name) in self.layout.integer
            and self.layout.integer[str(node.name)].kind in ("compute", "weight-only")
            and roles_of(node.op_type).weight is not None
        ]
        return frozenset((heavy[0], heavy[-1])) if len(heavy) > 2 else frozenset()

    def _constants(self, node: ir.Node, *, first_or_last: bool) -> None:
        roles, capability = roles_of(node.op_type), self.layout.integer[str(node.name)]
        if capability.kind == "table":
            self._table(node)
            return
        if roles.weight is None:
            self._operands(node)
            self._keep_apart(node, capability)
            return
        weight = node.inputs[roles.weight] if len(node.inputs) > roles.weight else None
        array = constant_array(weight)
        if weight is None or array is None:
            self._operands(node)
            self._convert(node, weight, capability)
            return
        if first_or_last and 8 not in capability.weight_bits:
            capability = self._wider(node, capability)
        bits = self.layout.scheme.weight_bits
        rule = f"{self.range_method if self.range_method == 'minmax' else 'mse'} weight scale"
        if bits not in capability.weight_bits or (first_or_last and 8 in capability.weight_bits):
            why = "first or last layer" if bits in capability.weight_bits else f"no {bits}-bit kernel"
            bits, rule = 8, f"{rule}, 8 bits: {why}"
        spec = self._weight_spec(node, array, bits, capability)
        qparams, restored = self._weight_qparams(node, weight, array, spec)
        if self._limited(spec) and multiplied_rows(node, array) is not None:
            rule += ", so that no two products saturate"
        bias = node.inputs[roles.bias] if roles.bias is not None and len(node.inputs) > roles.bias else None
        data = self._read(node, node.inputs[0])
        if self.layout.scheme.weight_only or data is None or roles.bias is None:
            self.decisions.append(Decision(str(weight.name), "weight", (str(node.name),), rule, qparams))
            return
        bias_array = self._bias_array(node, restored - array, bias)
        qparams, decision = bias_decision(node, bias, bias_array, data, qparams, self.target.bias.mode)
        self.decisions.append(Decision(str(weight.name), "weight", (str(node.name),), rule, qparams))
        if decision is not None:
            self.decisions.append(decision)

    def _limited(self, spec: TensorSpec) -> bool:
        """Only sums of products of 8-bit integers saturate; in blocks, weights meet floats."""
        return self.target.weights.pair_limit is not None and spec.dtype == IntType(8, True) and not self.weight_only

    def _weight_qparams(
        self, node: ir.Node, value: ir.Value, array: np.ndarray, spec: TensorSpec
    ) -> tuple[QParams, np.ndarray]:
        """How a weight is stored, and what its integers stand for, float32."""
        clip, name, limit = self.range_method != "minmax", str(value.name), self.target.weights.pair_limit
        if limit is not None and self._limited(spec):
            found = limit_pairs(node, array, spec, limit, clip=clip)
            held = self.weights.get(name)
            if found is not None and (held is None or np.array_equal(held, found[1])):
                self.weights[name] = found[1]
                return found
            if found is not None:  # another node multiplies the same weights in another order
                spec = replace(spec, reduced=True)
        qparams = self._storable(weight_qparams(array, spec, clip=clip))
        return qparams, fake_quantize(self.weights.get(name, array), qparams)

    def _bias_array(self, node: ir.Node, error: np.ndarray, bias: ir.Value | None) -> np.ndarray | None:
        array = constant_array(bias)
        # Data that moved, say through MaxPool, shares a scale with its owner, but not the channels' means.
        data = "" if node.inputs[0] is None else str(node.inputs[0].name)
        seen = self.stats.get(data) if self.layout.owner.get(data) == data else None
        # A MatMul may read the same tensor, and the means then be those of its last axis.
        mean = None if seen is None or seen.channel_axis != 1 else seen.channel_mean
        if not self.bias_correction or mean is None or (bias is not None and array is None):
            return array
        corrected = corrected_bias(node, error, mean, array)
        if corrected is None:
            return array
        self.weights[bias_name(node, bias)] = corrected
        return corrected

    def _wider(self, node: ir.Node, capability: Capability) -> Capability:
        """The same kernel with 8-bit weights, if the target has it."""
        others = (c for c in self.target.capabilities(node.op_type) if c.kind == capability.kind)
        fitting = (c for c in others if self.layout.bits_in(str(node.name)) in (None, *c.activation_bits))
        return next((c for c in fitting if 8 in c.weight_bits), capability)

    def _weight_spec(self, node: ir.Node, weight: np.ndarray, bits: int, capability: Capability) -> TensorSpec:
        own = capability.weight_types.get(str(self.layout.bits_in(str(node.name))))
        name = own or self.target.weights.types.get(str(bits))
        if name is None:
            raise ConfigError(
                f"{self.target.name} has no {bits}-bit weights; it has {', '.join(self.target.weights.types)}",
                remedy=f"choose one of the target's precisions: {', '.join(self.target.precisions)}",
            )
        axis = channel_axis(node, weight.ndim)
        dtype = IntType.parse(name)
        granularity: Granularity = PerTensor()
        scheme = self.layout.scheme
        if scheme.block is not None and weight.ndim == 2 and (scheme.weight_only or scheme.block in capability.blocks):
            granularity = PerBlock(0, scheme.block, 4 if self.target.weights.block_scale == "uint4" else None)
        elif capability.per_channel and axis is not None:
            granularity = PerAxis(axis)
        # Only sums of products of integers saturate, and those with fewer bits are small enough.
        reduced = self.target.weights.reduce_range and bits == 8 and not scheme.weight_only
        return TensorSpec(dtype, True, granularity, reduced, self.target.weights.scale == "power-of-two")

    def _table(self, node: ir.Node) -> None:
        """One scale per column, or per block of a row: both survive the look-up, so only rows are dequantized."""
        table = node.inputs[0]
        array = constant_array(table)
        assert table is not None
        assert array is not None
        sizes = [size for size in self.layout.integer[str(node.name)].blocks if array.shape[1] % size == 0]
        wanted = self.layout.scheme.block
        size = wanted if wanted in sizes else next(iter(sizes), None)
        granularity = PerAxis(1) if size is None else PerBlock(1, size)
        powers = self.target.weights.scale == "power-of-two"
        spec = TensorSpec(IntType(8, True), True, granularity, power_of_two=powers)
        qparams = self._storable(weight_qparams(array, spec))
        rule = "table looked up in 8 bits, dequantized after the look-up"
        self.decisions.append(Decision(str(table.name), "weight", (str(node.name),), rule, qparams))

    def _storable(self, qparams: QParams) -> QParams:
        """The scales in the type that they are stored in: float16 where floats are, and the weight is alone."""
        if self.target.floats.type == "float32" or not self.layout.scheme.weight_only:
            return qparams
        return replace(qparams, scale=half_scale(qparams.scale))

    def _operands(self, node: ir.Node) -> None:
        """Constant operands have the type of activations, tables that the target keeps narrower their own."""
        capability = self.layout.integer[str(node.name)]
        bits = self.layout.bits_in(str(node.name))
        own = capability.weight_types.get(str(bits))
        moved = capability.kind == "moves-data" and own is not None
        dtype = IntType.parse(str(own)) if moved else self._activation_type(bits)
        ignored = () if roles_of(node.op_type).data is None else range(1, len(node.inputs))
        for position, value in enumerate(node.inputs):
            array = constant_array(value)
            if value is None or array is None or not is_float(value) or position in ignored:
                continue
            qparams = self._operand_qparams(array, dtype)
            self.decisions.append(Decision(str(value.name), "weight", (str(node.name),), "constant operand", qparams))

    def _convert(self, node: ir.Node, value: ir.Value | None, capability: Capability) -> None:
        """An activation in the weight's place, in the type that the kernel multiplies without loss."""
        name = capability.operand_types.get(str(self.layout.bits_in(str(node.name))))
        held = None if value is None else self.activations.get(str(value.name))
        if name is None or value is None or held is None:
            return
        dtype = IntType.parse(name)
        spec = replace(self._activation_spec(dtype), symmetric=dtype.signed or self.target.activations.symmetric)
        qparams = range_to_qparams(*held.real_range, spec)
        rule = f"converted to {name} in front of {node.op_type}"
        self.decisions.append(Decision(str(value.name), "operand", (str(node.name),), rule, qparams))

    def _keep_apart(self, node: ir.Node, capability: Capability) -> None:
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

    def _activation_spec(self, dtype: IntType) -> TensorSpec:
        rules = self.target.activations
        return TensorSpec(dtype, rules.symmetric, power_of_two=rules.scale == "power-of-two")

    def _operand_qparams(self, array: np.ndarray, dtype: IntType) -> QParams:
        spec = self._activation_spec(dtype)
        low, high = float(array.min(initial=0.0)), float(array.max(initial=0.0))
        return range_to_qparams(low, max(high, low + self.target.activations.min_range), spec)

    def _constant(self, name: str) -> np.ndarray:
        array = constant_array(self.model.graph.initializers[name])
        assert array is not None
        return array
