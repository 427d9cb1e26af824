"""How each node will run on the target: as what, on which provider, and why. From the profile alone."""

from __future__ import annotations

import onnx_ir as ir

from edgeq.qtypes import Kind, NodeForecast
from edgeq.stages.choose.layout import Layout
from edgeq.stages.choose.roles import is_float
from edgeq.target import TargetProfile

__all__ = ["forecast_nodes"]

_CPU = "CPUExecutionProvider"


def forecast_nodes(model: ir.Model, layout: Layout, target: TargetProfile) -> dict[str, NodeForecast]:
    """One forecast per node of the main graph, by the node's name, in graph order.

    ``model`` and ``layout`` are those of ``find_layout``. Nothing is run and no data is needed. A node
    that reads no floats counts as ``moves data``; a float operator that the provider does not run
    (``floats.runs`` in the profile) falls to the CPU, and the reason says so.
    """
    return {str(node.name): _forecast(node, layout, target) for node in model.graph}


def _forecast(node: ir.Node, layout: Layout, target: TargetProfile) -> NodeForecast:
    name = str(node.name)
    capability = layout.integer.get(layout.absorbed.get(name, name))
    kind: Kind
    if name in layout.absorbed:
        kind, why = "fused", layout.reasons[name]
    elif capability is not None:
        kind, why = ("moves data" if capability.kind == "moves-data" else "integer"), capability.source
    else:
        kind, why = ("float" if any(is_float(v) for v in node.inputs) else "moves data"), layout.reasons[name]
    if capability is not None:
        provider = capability.provider or target.provider.name
    else:
        provider, refusal = _runs_floats(node, kind, target)
        why = f"{why}; {refusal}" if refusal else why
    return NodeForecast(node=name, op_type=node.op_type, kind=kind, provider=provider, why=why)


def _runs_floats(node: ir.Node, kind: Kind, target: TargetProfile) -> tuple[str, str | None]:
    """The provider of a node that is not quantized, and why it is not the target's own."""
    own = target.provider.name
    listed = next((c for c in target.capabilities(node.op_type) if c.kind == "float"), None)
    if listed is not None:
        return listed.provider or own, None
    if target.floats.runs == "all" or own == _CPU:
        return own, None
    if kind == "moves data" and target.capabilities(node.op_type):
        return own, None
    what = "no floats" if target.floats.runs == "none" else f"no {node.op_type} in floats"
    return _CPU, f"{own} runs {what}, so it falls to the CPU"
