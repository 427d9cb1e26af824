"""How constants are stored: weights, biases, looked-up tables and constant operands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from edgeq.affine import fake_quantize
from edgeq.bias import bias_decision, bias_name, corrected_bias
from edgeq.errors import ConfigError
from edgeq.float16 import half_scale
from edgeq.graph import constant_array
from edgeq.qtypes import Decision, Granularity, IntType, PerAxis, PerBlock, PerTensor, QParams, TensorSpec
from edgeq.roles import channel_axis, is_float, roles_of
from edgeq.stages.choose.activations import ActivationPlanner
from edgeq.stages.choose.layout import Layout
from edgeq.stages.choose.pairs import limit_pairs, multiplied_rows
from edgeq.stages.choose.weights import weight_qparams
from edgeq.target import Capability, TargetProfile

__all__ = ["ConstantPlanner"]


@dataclass
class ConstantPlanner:
    """Decides about the constants of one node after another, once the activations are decided.

    Its decisions go behind those of ``planner``; ``weights`` holds the float tensors that it changed.
    """

    planner: ActivationPlanner
    bias_correction: bool
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return self.planner.layout

    @property
    def target(self) -> TargetProfile:
        return self.planner.target

    @property
    def decisions(self) -> list[Decision]:
        return self.planner.decisions

    @property
    def range_method(self) -> str:
        return self.planner.range_method

    def decide(self, node: ir.Node) -> None:
        roles, capability = roles_of(node.op_type), self.layout.integer[str(node.name)]
        if capability.kind == "table":
            self._table(node)
            return
        if roles.weight is None:
            self._operands(node)
            self.planner.keep_apart(node, capability)
            return
        weight = node.inputs[roles.weight] if len(node.inputs) > roles.weight else None
        array = constant_array(weight)
        if weight is None or array is None:
            self._operands(node)
            self.planner.convert(node, weight, capability)
            return
        wanted = self.layout.format_of(str(node.name))
        bits = wanted.weight_bits or self.layout.scheme.weight_bits
        kept = "few weights" if node.name in self.layout.small else ""
        kept = "first or last layer" if node.name in self.layout.edges else kept
        if kept and 8 not in capability.weight_bits:
            capability = self._wider(node, capability)
        rule = f"{self.range_method if self.range_method == 'minmax' else 'mse'} weight scale"
        if bits not in capability.weight_bits or (kept and 8 in capability.weight_bits):
            why = kept if bits in capability.weight_bits else f"no {bits}-bit kernel"
            bits, rule = 8, f"{rule}, 8 bits: {why}"
        spec = self._weight_spec(node, array, bits, capability)
        if wanted.block is not None and not isinstance(spec.granularity, PerBlock):
            rule += f", one scale per channel: no {bits}-bit kernel for blocks of {wanted.block}"
        qparams, restored = self._weight_qparams(node, weight, array, spec, capability)
        if self._limited(spec, capability) and multiplied_rows(node, array) is not None:
            rule += ", so that no two products saturate"
        bias = node.inputs[roles.bias] if roles.bias is not None and len(node.inputs) > roles.bias else None
        data = self.planner.read(node, node.inputs[0])
        if capability.kind in ("weight-only", "dynamic") or data is None or roles.bias is None:
            self.decisions.append(Decision(str(weight.name), "weight", (str(node.name),), rule, qparams))
            return
        bias_array = self._bias_array(node, restored - array, bias)
        qparams, decision = bias_decision(node, bias, bias_array, data, qparams, self.target.bias.mode)
        self.decisions.append(Decision(str(weight.name), "weight", (str(node.name),), rule, qparams))
        if decision is not None:
            self.decisions.append(decision)

    def _limited(self, spec: TensorSpec, capability: Capability) -> bool:
        """Only sums of products of 8-bit integers saturate; in blocks, weights meet floats."""
        alone = capability.kind == "weight-only"
        return self.target.weights.pair_limit is not None and spec.dtype == IntType(8, True) and not alone

    def _weight_qparams(
        self, node: ir.Node, value: ir.Value, array: np.ndarray, spec: TensorSpec, capability: Capability
    ) -> tuple[QParams, np.ndarray]:
        """How a weight is stored, and what its integers stand for, float32."""
        clip, name, limit = self.range_method != "minmax", str(value.name), self.target.weights.pair_limit
        if limit is not None and self._limited(spec, capability):
            found = limit_pairs(node, array, spec, limit, clip=clip)
            held = self.weights.get(name)
            if found is not None and (held is None or np.array_equal(held, found[1])):
                self.weights[name] = found[1]
                return found
            if found is not None:  # another node multiplies the same weights in another order
                spec = replace(spec, reduced=True)
        qparams = self._storable(weight_qparams(array, spec, clip=clip), capability)
        return qparams, fake_quantize(self.weights.get(name, array), qparams)

    def _bias_array(self, node: ir.Node, error: np.ndarray, bias: ir.Value | None) -> np.ndarray | None:
        array = constant_array(bias)
        # Data that moved, say through MaxPool, shares a scale with its owner, but not the channels' means.
        data = "" if node.inputs[0] is None else str(node.inputs[0].name)
        seen = self.planner.stats.get(data) if self.layout.owner.get(data) == data else None
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
        block = self.layout.format_of(str(node.name)).block
        alone = capability.kind == "weight-only"
        if block is not None and weight.ndim == 2 and (alone or block in capability.blocks):
            granularity = PerBlock(0, block, 4 if self.target.weights.block_scale == "uint4" else None)
        elif capability.per_channel and axis is not None:
            granularity = PerAxis(axis)
        # Only sums of products of integers saturate, and those with fewer bits are small enough.
        reduced = self.target.weights.reduce_range and bits == 8 and not alone
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
        qparams = self._storable(weight_qparams(array, spec), self.layout.integer[str(node.name)])
        rule = "table looked up in 8 bits, dequantized after the look-up"
        self.decisions.append(Decision(str(table.name), "weight", (str(node.name),), rule, qparams))

    def _storable(self, qparams: QParams, capability: Capability) -> QParams:
        """The scales in the type that they are stored in: float16 where floats are, and the weight is alone."""
        if self.target.floats.type == "float32" or capability.kind not in ("weight-only", "table"):
            return qparams
        return replace(qparams, scale=half_scale(qparams.scale))

    def _operands(self, node: ir.Node) -> None:
        """Constant operands have the type of activations, tables that the target keeps narrower their own."""
        capability = self.layout.integer[str(node.name)]
        bits = self.layout.bits_in(str(node.name))
        own = capability.weight_types.get(str(bits))
        moved = capability.kind == "moves-data" and own is not None
        dtype = IntType.parse(str(own)) if moved else self.planner.activation_type(bits)
        ignored = () if roles_of(node.op_type).data is None else range(1, len(node.inputs))
        for position, value in enumerate(node.inputs):
            array = constant_array(value)
            if value is None or array is None or not is_float(value) or position in ignored:
                continue
            qparams = self.planner.operand_qparams(array, dtype)
            self.decisions.append(Decision(str(value.name), "weight", (str(node.name),), "constant operand", qparams))
