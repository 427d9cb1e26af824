"""Where each node of a quantized model really runs, and as what: asked of the provider, never guessed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx_ir as ir

from edgeq import graph
from edgeq.errors import ProviderError
from edgeq.qtypes import Kind, NodeForecast
from edgeq.report import Finding, NodePlacement
from edgeq.runtime import open_session, session_options
from edgeq.stages.run.gates import gate_findings, prediction_findings
from edgeq.stages.run.kernels import PLUMBING, label_nodes, labelled, read_kernels
from edgeq.stages.run.reasons import (
    ABSORBED,
    dequantized_inputs,
    quantizers_behind,
    reads_beside,
    reads_floats,
    why_float,
)
from edgeq.stages.run.refusals import Refusals, read_refusals
from edgeq.target import CPU_PROVIDER, Gates

if TYPE_CHECKING:
    from edgeq.target import Provider

__all__ = ["Placement", "assigned_placement", "read_placement"]


@dataclass(frozen=True)
class Placement:
    """One entry per node that is not Q/DQ, in graph order, and what is wrong with it."""

    nodes: tuple[NodePlacement, ...]
    findings: tuple[Finding, ...]


def read_placement(
    model: ir.Model | str | os.PathLike[str],
    provider: Provider | None = None,
    *,
    expected: Mapping[str, NodeForecast] | None = None,
    gates: Gates | None = None,
    threads: int = 1,
) -> Placement:
    """Load the model on ``provider`` (default: the CPU) and read what became of every node.

    ``expected`` is ``QuantPlan.nodes``: each node carries what was predicted beside what is real, the
    reason a node was planned to stay float is told as its reason, and nodes that differ are a finding.
    ``gates`` says how severe each gate's finding is (default: as ``edgeq.target.Gates`` has it).

    Raises:
        ModelError: the model does not load.
        ProviderError: the provider is not available on this machine, or took no node at all.
    """
    if not isinstance(model, ir.Model):
        model = graph.load_model(model)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        copy = Path(folder) / "model.onnx"
        graph.save_model(label_nodes(model), copy)
        left: list[Finding] = []
        expected = expected or {}
        if provider is None or provider.name == CPU_PROVIDER:
            nodes, dequantizes, left = _on_cpu(model, copy, provider, expected, threads)
        else:
            nodes = _on_accelerator(model, copy, provider, expected, threads)
            dequantizes = _in_front(model, nodes)
    nodes = [_with_prediction(place, expected.get(place.node)) for place in nodes]
    own = provider.name if provider is not None else CPU_PROVIDER
    found = gate_findings(nodes, own, expected, dequantizes, gates or Gates())
    return Placement(tuple(nodes), (*found, *prediction_findings(nodes, expected), *left))


def assigned_placement(
    model: ir.Model | str | os.PathLike[str],
    provider: Provider,
    assigned: Mapping[str, str],
    *,
    expected: Mapping[str, NodeForecast] | None = None,
    gates: Gates | None = None,
) -> Placement:
    """The same from what a provider told elsewhere, in its sandbox: ``assigned`` names who took which node."""
    if not isinstance(model, ir.Model):
        model = graph.load_model(model)
    expected = expected or {}
    nodes = []
    for node in model.graph:
        name = str(node.name)
        place = partial(NodePlacement, node=name, op_type=node.op_type, runs_as=node.op_type)
        if node.op_type in PLUMBING:
            continue
        if name not in assigned:
            nodes.append(place(provider=provider.name, kind="fused", why="optimized away while loading"))
        elif assigned[name] != provider.name:
            refused = "refused by the provider, without a reason"
            nodes.append(place(provider=assigned[name], kind=_kind_outside(node), why=refused))
        else:
            nodes.append(_taken(node, provider.name, expected.get(name)))
    nodes = [_with_prediction(place, expected.get(place.node)) for place in nodes]
    found = gate_findings(nodes, provider.name, expected, _in_front(model, nodes), gates or Gates())
    return Placement(tuple(nodes), (*found, *prediction_findings(nodes, expected)))


def _with_prediction(place: NodePlacement, forecast: NodeForecast | None) -> NodePlacement:
    if forecast is None:
        return place
    predicted = forecast.foreseen or forecast.kind
    return msgspec.structs.replace(place, predicted=predicted, predicted_provider=forecast.provider)


def _in_front(model: ir.Model, nodes: list[NodePlacement]) -> dict[str, frozenset[str]]:
    """What is dequantized in front of nodes on the CPU beside an accelerator, whose kernels nobody tells."""
    by_name = {str(node.name): node for node in model.graph}
    found = {}
    for place in nodes:
        if place.provider == CPU_PROVIDER:
            sources = dequantized_inputs(by_name[place.node])
            constants = [graph.constant_array(source.inputs[0]) is not None for source in sources]
            found[place.node] = frozenset("stored" if constant else "quantized" for constant in constants)
    return found


def _on_cpu(
    model: ir.Model, copy: Path, provider: Provider | None, expected: Mapping[str, NodeForecast], threads: int
) -> tuple[list[NodePlacement], dict[str, frozenset[str]], list[Finding]]:
    optimized = copy.with_name("optimized.onnx")
    options = session_options(threads=threads, config=provider.session if provider else None)
    options.optimized_model_filepath = str(optimized)
    # Weights go to a file beside it: the graph is small to read, and no model is too large.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    with open_session(copy, options, provider):
        kernels = read_kernels(model, optimized)
    nodes = list(model.graph)
    placed = []
    for index, kernel in kernels.by_node.items():
        node = nodes[index]
        place = partial(NodePlacement, node=str(node.name), op_type=node.op_type, provider=CPU_PROVIDER)
        if kernel is None:
            placed.append(place(runs_as="constant", kind="fused", why="computed while loading"))
        elif kernel.head != index:
            placed.append(place(runs_as=kernel.op_type, kind="fused", fused_into=str(nodes[kernel.head].name)))
        else:
            why = _why(node, kernel.op_type, expected) if kernel.kind == "float" else None
            placed.append(place(runs_as=kernel.op_type, kind=kernel.kind, why=why))
    dequantizes = {
        str(nodes[index].name): frozenset[str](kernel.dequantizes)
        for index, kernel in kernels.by_node.items()
        if kernel is not None and kernel.head == index
    }
    if not kernels.quantize + kernels.dequantize:
        return placed, dequantizes, []
    left = f"{kernels.quantize} QuantizeLinear and {kernels.dequantize} DequantizeLinear"
    text = f"Besides these nodes, {left} kernels run at every inference."
    return placed, dequantizes, [Finding(severity="info", text=text)]


def _why(node: ir.Node, runs_as: str, expected: Mapping[str, NodeForecast]) -> str:
    planned = expected.get(str(node.name))
    return planned.why if planned is not None and planned.kind == "float" else why_float(node, runs_as)


def _on_accelerator(
    model: ir.Model, copy: Path, provider: Provider, expected: Mapping[str, NodeForecast], threads: int
) -> list[NodePlacement]:
    """An accelerator compiles its part of the graph; it tells which nodes, not which kernels."""
    # What falls to the CPU is to be seen here, not to fail.
    config = {key: value for key, value in provider.session.items() if key != "session.disable_cpu_ep_fallback"}
    config["session.record_ep_graph_assignment_info"] = "1"
    with open_session(copy, session_options(threads=threads, config=config), provider) as session:
        where = {
            index: part.ep_name
            for part in session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
            if (index := labelled(node.name)) is not None
        }
    wanted = {index: node for index, node in enumerate(model.graph) if node.op_type not in PLUMBING}
    refused = any(where.get(index, provider.name) != provider.name for index in wanted)
    refusals = read_refusals(copy, provider) if refused else Refusals({})
    if wanted and provider.name not in where.values():
        reason = refusals.whole or next(iter(refusals.nodes.values()), "it gave no reason")
        raise ProviderError(
            f"{provider.name} took none of the model's {len(wanted)} nodes: {reason}",
            remedy="check the provider's options, such as the model of the chip, and that all shapes are static",
        )
    placed = []
    for index, node in wanted.items():
        place = partial(NodePlacement, node=str(node.name), op_type=node.op_type, runs_as=node.op_type)
        if index not in where:
            placed.append(place(provider=provider.name, kind="fused", why="optimized away while loading"))
        elif where[index] != provider.name:
            why = refusals.nodes.get(index, "refused by the provider, which gave no reason")
            placed.append(place(provider=where[index], kind=_kind_outside(node), why=why))
        else:
            placed.append(_taken(node, provider.name, expected.get(str(node.name))))
    return placed


def _kind_outside(node: ir.Node) -> Kind:
    """As what a node runs that falls to the CPU beside an accelerator."""
    return "float" if reads_floats(node) else "moves data"


def _taken(node: ir.Node, provider: str, planned: NodeForecast | None) -> NodePlacement:
    """A node that the provider took: as what it runs follows from the Q/DQ around it.

    Whether it computes or only moves integers, and whether a float output keeps its kernel from being an
    integer one, no accelerator tells: that is the plan's word.
    """
    place = partial(NodePlacement, node=str(node.name), op_type=node.op_type, runs_as=node.op_type, provider=provider)
    left = planned is not None and planned.kind == "float"
    if dequantized_inputs(node):
        outputs = planned is not None and planned.kind == "integer"
        why = "its output is not quantized" if _leaves_floats(node) and not outputs else reads_beside(node)
        if why is not None:
            return place(kind="float", why=planned.why if left and planned is not None else why)
        return place(kind="moves data" if planned is not None and planned.kind == "moves data" else "integer")
    if node.domain == "com.microsoft" and planned is not None and planned.kind == "integer":
        return place(kind="integer")  # it reads its stored weights itself, as MatMulNBits does
    if not reads_floats(node):
        return place(kind="moves data", why="works on integers already")
    absorber = _absorber(node)
    if absorber is not None:
        return place(kind="fused", fused_into=str(absorber.name))
    why = planned.why if left and planned is not None else "it was left float: its inputs are not quantized"
    return place(kind="float", why=why)


def _leaves_floats(node: ir.Node) -> bool:
    """Whether a float output of ``node`` is quantized neither here nor behind a Relu or Clip in its group."""
    if not any(value.dtype in (None, ir.DataType.FLOAT) for value in node.outputs) or quantizers_behind(node):
        return False
    behind = [use.node for value in node.outputs for use in value.uses()]
    return not any(_absorber(follower) is node for follower in behind)


def _absorber(node: ir.Node) -> ir.Node | None:
    """The quantized node whose kernel takes ``node`` over: one group of DQ, operator, Relu or Clip, Q."""
    if node.op_type not in ABSORBED or not quantizers_behind(node) or node.inputs[0] is None:
        return None
    producer = node.inputs[0].producer()
    return producer if producer is not None and dequantized_inputs(producer) else None
