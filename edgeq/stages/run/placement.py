"""Where each node of a quantized model really runs, and as what: asked of the provider, never guessed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgeq import graph
from edgeq.errors import ProviderError
from edgeq.report import Finding, NodePlacement
from edgeq.runtime import open_session, session_options
from edgeq.stages.run.kernels import PLUMBING, label_nodes, labelled, read_kernels
from edgeq.stages.run.reasons import ABSORBED, HOT, dequantized_inputs, quantizers_behind, reads_floats, why_float
from edgeq.stages.run.refusals import Refusals, read_refusals

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgeq.target import Provider

__all__ = ["Placement", "read_placement"]

_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Placement:
    """One entry per node that is not Q/DQ, in graph order, and what is wrong with it."""

    nodes: tuple[NodePlacement, ...]
    findings: tuple[Finding, ...]


def read_placement(
    model: ir.Model | str | os.PathLike[str],
    provider: Provider | None = None,
    *,
    expected: Mapping[str, tuple[str, str]] | None = None,
    threads: int = 1,
) -> Placement:
    """Load the model on ``provider`` (default: the CPU) and read what became of every node.

    ``expected`` is ``QuantPlan.nodes``: the reason a node was planned to stay float is told as
    its reason, and a node that was promised integers but runs in float becomes a finding.

    Raises:
        ModelError: the model does not load.
        ProviderError: the provider is not available on this machine, or took no node at all.
    """
    import onnx_ir as ir

    if not isinstance(model, ir.Model):
        model = graph.load_model(model)
    with tempfile.TemporaryDirectory(prefix="edgeq-") as folder:
        copy = Path(folder) / "model.onnx"
        graph.save_model(label_nodes(model), copy)
        left: list[Finding] = []
        if provider is None or provider.name == _CPU:
            nodes, left = _on_cpu(model, copy, provider, expected or {}, threads)
        else:
            nodes = _on_accelerator(model, copy, provider, expected or {}, threads)
    return Placement(tuple(nodes), (*_findings(model, nodes, provider, expected or {}), *left))


def _on_cpu(
    model: ir.Model, copy: Path, provider: Provider | None, expected: Mapping[str, tuple[str, str]], threads: int
) -> tuple[list[NodePlacement], list[Finding]]:
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
        place = partial(NodePlacement, node=str(node.name), op_type=node.op_type, provider=_CPU)
        if kernel is None:
            placed.append(place(runs_as="constant", kind="fused", why="computed while loading"))
        elif kernel.head != index:
            placed.append(place(runs_as=kernel.op_type, kind="fused", fused_into=str(nodes[kernel.head].name)))
        else:
            why = _why(node, kernel.op_type, expected) if kernel.kind == "float" else None
            placed.append(place(runs_as=kernel.op_type, kind=kernel.kind, why=why))
    if not kernels.quantize + kernels.dequantize:
        return placed, []
    left = f"{kernels.quantize} QuantizeLinear and {kernels.dequantize} DequantizeLinear"
    return placed, [Finding(severity="info", text=f"Besides these nodes, {left} kernels run at every inference.")]


def _why(node: ir.Node, runs_as: str, expected: Mapping[str, tuple[str, str]]) -> str:
    kind, reason = expected.get(str(node.name), ("", ""))
    return reason if kind == "float" and reason else why_float(node, runs_as)


def _on_accelerator(
    model: ir.Model, copy: Path, provider: Provider, expected: Mapping[str, tuple[str, str]], threads: int
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
            placed.append(place(provider=where[index], kind="float", why=why))
        else:
            placed.append(_taken(node, provider.name, *expected.get(str(node.name), ("", ""))))
    return placed


def _taken(node: ir.Node, provider: str, planned: str, reason: str) -> NodePlacement:
    """A node that the provider took: as what it runs follows from the Q/DQ around it."""
    place = partial(NodePlacement, node=str(node.name), op_type=node.op_type, runs_as=node.op_type, provider=provider)
    if dequantized_inputs(node):
        return place(kind="moves data" if planned == "moves data" else "integer")
    if not reads_floats(node):
        return place(kind="moves data", why="works on integers already")
    absorber = _absorber(node)
    if absorber is not None:
        return place(kind="fused", fused_into=str(absorber.name))
    why = (planned == "float" and reason) or "it was left float: its inputs are not quantized"
    return place(kind="float", why=why)


def _absorber(node: ir.Node) -> ir.Node | None:
    """The quantized node whose kernel takes ``node`` over: one group of DQ, operator, Relu or Clip, Q."""
    if node.op_type not in ABSORBED or not quantizers_behind(node) or node.inputs[0] is None:
        return None
    producer = node.inputs[0].producer()
    return producer if producer is not None and dequantized_inputs(producer) else None


def _findings(
    model: ir.Model,
    nodes: Sequence[NodePlacement],
    provider: Provider | None,
    expected: Mapping[str, tuple[str, str]],
) -> list[Finding]:
    by_name = {str(node.name): node for node in model.graph}
    floats = [p for p in nodes if p.kind == "float"]
    away = [p for p in floats if provider is not None and p.provider != provider.name]
    dequantized = [p for p in floats if p.provider == _CPU and dequantized_inputs(by_name[p.node])]
    unfused = [p for p in dequantized if p.op_type in HOT and expected.get(p.node, ("", ""))[0] != "float"]
    broken = [p for p in floats if expected.get(p.node, ("", ""))[0] == "integer" and p not in unfused + away]
    trips = [p for p in dequantized if p not in unfused + away + broken]
    findings = []
    if unfused:
        findings.append(
            _finding(
                "error",
                "{} with quantized inputs {} in float behind DequantizeLinear, which is slower than the float model",
                unfused,
                "change what the reason of each node names, or leave these nodes float altogether",
            )
        )
    if away and provider is not None:
        text = f"{{}} {{}} on the CPU, refused by {provider.name}"
        findings.append(_finding("warning", text, away, "see the reason of each node; leave it float or replace it"))
    if broken:
        text = "{} planned for integers {} in float"
        findings.append(_finding("warning", text, broken, "report this: the target's profile promises too much"))
    if trips:
        text = "{} {} in float behind DequantizeLinear"
        remedy = "nothing, unless their latency matters: then use operators that the target has integer kernels for"
        findings.append(_finding("info", text, trips, remedy))
    return findings


def _finding(
    severity: Literal["error", "warning", "info"], text: str, placed: Sequence[NodePlacement], remedy: str
) -> Finding:
    count = "1 node" if len(placed) == 1 else f"{len(placed)} nodes"
    reasons = dict.fromkeys(p.why for p in placed if p.why)
    why = f": {next(iter(reasons))}" if len(reasons) == 1 else ""
    sentence = text.format(count, "runs" if len(placed) == 1 else "run") + why + "."
    return Finding(severity=severity, text=sentence, nodes=tuple(p.node for p in placed), remedy=remedy)
