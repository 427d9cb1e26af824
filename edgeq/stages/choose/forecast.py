"""How each node will run on the target: as what, on which provider, and why. From the profile alone."""

from __future__ import annotations

from functools import cached_property

import onnx_ir as ir

from edgeq.graph import constant_array, outer_nodes
from edgeq.qtypes import Kind, NodeForecast
from edgeq.roles import is_float, is_floating, roles_of
from edgeq.stages.choose.layout import Layout
from edgeq.target import CPU_PROVIDER, Capability, TargetProfile

__all__ = ["forecast_nodes"]


def forecast_nodes(model: ir.Model, layout: Layout, target: TargetProfile) -> dict[str, NodeForecast]:
    """One forecast per node of the main graph, by the node's name, in graph order.

    ``model`` and ``layout`` are those of ``find_layout``. Nothing is run and no data is needed. A node
    that reads no floats counts as ``moves data``, and so does the look-up of rows in an integer table; a
    float operator that the provider does not run (``floats.runs`` in the profile) falls to the CPU, and
    the reason says so.
    """
    forecaster = _Forecaster(model, layout, target)
    return {str(node.name): forecaster.forecast(node) for node in model.graph}


class _Forecaster:
    def __init__(self, model: ir.Model, layout: Layout, target: TargetProfile) -> None:
        self.nodes = list(model.graph)
        self.outer = outer_nodes(model)
        self.layout = layout
        self.target = target

    def forecast(self, node: ir.Node) -> NodeForecast:
        name = str(node.name)
        capability = self.layout.integer.get(self.layout.absorbed.get(name, name))
        passive = self._passive.get(name)
        kind: Kind
        if name in self.layout.absorbed:
            kind, why = "fused", self.layout.reasons[name]
        elif (found := capability or passive) is not None:
            kind, why = ("moves data" if found.kind in ("moves-data", "table") else "integer"), found.source
        else:
            kind, why = self._left(node), self.layout.reasons[name]
        if (found := capability or passive) is not None:
            provider = found.provider or self.target.provider.name
        else:
            provider, refusal = self._runs_floats(node, kind)
            why = f"{why}; {refusal}" if refusal else why
        return NodeForecast(node=name, op_type=node.op_type, kind=kind, provider=provider, why=why)

    @staticmethod
    def _left(node: ir.Node) -> Kind:
        return "float" if any(is_floating(value) for value in node.inputs) else "moves data"

    def _runs_floats(self, node: ir.Node, kind: Kind) -> tuple[str, str | None]:
        """The provider of a node that is not quantized, and why it is not the target's own."""
        own, capabilities = self.target.provider.name, self.target.capabilities(node.op_type)
        listed = next((capability for capability in capabilities if capability.kind == "float"), None)
        if listed is not None and (listed.provider is not None or self.target.floats.runs != "none"):
            provider = listed.provider or own
            return provider, None if provider == own else listed.source
        if self.target.floats.runs == "all" or own == CPU_PROVIDER or (kind == "moves data" and capabilities):
            return own, None
        what = "no floats" if self.target.floats.runs == "none" else f"no {node.op_type} in floats"
        return CPU_PROVIDER, f"{own} runs {what}, so it falls to the CPU"

    # -- what the provider does with the Q/DQ of a node's neighbours

    @cached_property
    def _passive(self) -> dict[str, Capability]:
        """Nodes for which no Q/DQ is asked, but which run on those of their neighbours."""
        found: dict[str, Capability] = {}
        for node in self.nodes:
            capability = self._passive_capability(node)
            data = self._activations(node)
            if capability is not None and data and all(self._dequantized(value, node, found) for value in data):
                found[str(node.name)] = capability
        for node in reversed(self.nodes):
            capability = self._passive_capability(node)
            if capability is not None and capability.kind == "moves-data" and self._quantized_behind(node, found):
                found[str(node.name)] = capability
        return found

    def _passive_capability(self, node: ir.Node) -> Capability | None:
        if str(node.name) in self.layout.integer or str(node.name) in self.layout.absorbed:
            return None
        value = node.inputs[0] if node.inputs else None
        bits = self.layout.bits_of("" if value is None else str(value.name))
        capabilities = self.target.capabilities(node.op_type)
        return next((c for c in capabilities if c.passive and bits in c.activation_bits), None)

    def _activations(self, node: ir.Node) -> list[ir.Value]:
        """All that ``node`` computes with; a float constant among it keeps the node float."""
        positions = roles_of(node.op_type).data if roles_of(node.op_type).weight is None else None
        values = node.inputs if positions is None else [node.inputs[i] for i in positions if i < len(node.inputs)]
        return [value for value in values if value is not None and is_float(value)]

    def _dequantized(self, value: ir.Value, node: ir.Node, found: dict[str, Capability]) -> bool:
        """Whether ``node`` reads a DequantizeLinear, perhaps across nodes that move data."""
        if constant_array(value) is not None:
            return False
        if str(node.name) in self.layout.activations.get(str(value.name), ()):
            return True
        producer = value.producer()
        capability = found.get(str(producer.name)) if producer is not None else None
        return capability is not None and capability.kind == "moves-data"

    def _quantized_behind(self, node: ir.Node, found: dict[str, Capability]) -> bool:
        """Whether all that reads ``node`` is a QuantizeLinear, perhaps across nodes that move data."""
        for value in node.outputs:
            consumers = self.layout.activations.get(str(value.name), ())
            readers = [str(self.outer.get(reader, reader).name) for reader, _ in value.uses()]
            if value.is_graph_output() or not readers:
                return False
            if not all(reader in consumers or (reader in found and not consumers) for reader in readers):
                return False
        return True
