"""From a layout and statistics to a ``QuantPlan``: every number is decided here, nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx_ir as ir

from edgeq.errors import ConfigError
from edgeq.qtypes import NodeForecast, QuantPlan, TensorStats
from edgeq.stages.choose.activations import ActivationPlanner
from edgeq.stages.choose.constants import ConstantPlanner
from edgeq.stages.choose.forecast import forecast_nodes
from edgeq.stages.choose.layout import Layout
from edgeq.stages.choose.ranges import RANGE_METHODS
from edgeq.target import TargetProfile

__all__ = ["choose_plan"]


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
    planner = ActivationPlanner(model, layout, stats, target, range_method)
    planner.decide()
    constants = ConstantPlanner(planner, bias_correction)
    for node in model.graph:
        name = str(node.name)
        if name in layout.integer:
            constants.decide(node)
    nodes = forecast_nodes(model, layout, target)
    _demote(model, layout, nodes, planner.demoted)
    return QuantPlan(
        target.name,
        layout.scheme,
        tuple(planner.decisions),
        nodes,
        constants.weights,
        layout.produced,
        dynamic=layout.dynamic,
    )


def _demote(model: ir.Model, layout: Layout, nodes: dict[str, NodeForecast], demoted: Mapping[str, str]) -> None:
    """Nodes that were to read or to write a tensor which stays float run in float, too."""
    for tensor, reason in demoted.items():
        for node in model.graph:
            name = layout.absorbed.get(str(node.name), str(node.name))
            writes = tensor in layout.produced and any(output.name == tensor for output in node.outputs)
            reads = name in layout.activations[tensor]
            if (reads or writes) and name in layout.integer:
                held = nodes[name]
                foreseen = held.foreseen or held.kind
                nodes[name] = msgspec.structs.replace(held, kind="float", why=reason, foreseen=foreseen)
