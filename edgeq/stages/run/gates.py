"""In which ways a package disappoints: findings with node names and a remedy, as severe as the profile says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeq.agreement import agreement, disagreeing
from edgeq.qtypes import NodeForecast
from edgeq.report import Finding, NodePlacement
from edgeq.stages.run.reasons import HOT
from edgeq.target import Gate, Gates, Severity

__all__ = ["gate_findings", "prediction_findings"]


def gate_findings(
    nodes: Sequence[NodePlacement],
    own: str,
    expected: Mapping[str, NodeForecast],
    dequantizes: Mapping[str, frozenset[str]],
    gates: Gates,
) -> list[Finding]:
    """One finding per gate that is not clean, worst first; a gate whose severity is ``"off"`` says nothing.

    ``own`` is the target's provider. ``dequantizes`` tells, by node, of which inputs a DequantizeLinear
    runs directly in front of it: ``"quantized"`` activations, ``"stored"`` constants.
    """
    floats = [place for place in nodes if place.kind == "float"]
    unfused = [place for place in floats if place.op_type in HOT and _unfused(place, expected, dequantizes)]
    away = [place for place in nodes if place.provider != own]
    left = [place for place in floats if "quantized" in dequantizes.get(place.node, ())]
    return [
        *_finding(
            "unfused",
            gates.unfused,
            "{} with quantized inputs {} in float behind DequantizeLinear, which is slower than the float model",
            unfused,
            "change what the reason of each node names, or leave these nodes float altogether",
        ),
        *_finding(
            "fallback",
            gates.fallback,
            f"{{}} {{}} on the CPU, refused by {own}",
            away,
            "see the reason of each node; leave it float or replace it",
        ),
        *_finding(
            "leftover",
            gates.leftover,
            "{} {} in float between Q/DQ pairs",
            left,
            "nothing, unless their latency matters: then use operators that the target has integer kernels for",
        ),
    ]


def _unfused(
    place: NodePlacement, expected: Mapping[str, NodeForecast], dequantizes: Mapping[str, frozenset[str]]
) -> bool:
    """A node that was to stay float may read dequantized activations, but its weights are to be float, too."""
    found = dequantizes.get(place.node, frozenset())
    planned = expected.get(place.node)
    return "stored" in found or ("quantized" in found and (planned is None or planned.kind != "float"))


def prediction_findings(nodes: Sequence[NodePlacement], expected: Mapping[str, NodeForecast]) -> list[Finding]:
    """The nodes that run otherwise than the profile predicted; nothing where all agree or nothing was predicted."""
    share, differ = agreement(nodes), disagreeing(nodes)
    if share is None or not differ:
        return []
    reality = {place.node: place for place in nodes}
    first = differ[0]
    runs = reality.get(str(first.fused_into), first)
    how = f"as part of {runs.node}" if runs is not first else f"as {runs.runs_as}"
    text = (
        f"{_count(differ)} {'runs' if len(differ) == 1 else 'run'} otherwise than predicted "
        f"(agreement {100 * share:.1f} %): "
        f"{first.node} was to be {_on(first.predicted, first.predicted_provider)}, "
        f"and runs {how} ({_on(runs.kind, runs.provider)})."
    )
    broken = [p for p in differ if p.kind == "float" and expected[p.node].kind in ("integer", "moves data")]
    remedy = (
        "report this: the target's profile promises too much"
        if broken
        else "nothing: compare prediction and reality in the report's list of nodes"
    )
    names = tuple(place.node for place in differ)
    return [Finding(severity="warning" if broken else "info", text=text, nodes=names, remedy=remedy)]


def _on(kind: str | None, provider: str | None) -> str:
    return f"{kind} on {str(provider).removesuffix('ExecutionProvider')}"


def _count(nodes: Sequence[NodePlacement]) -> str:
    return "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"


def _finding(gate: Gate, severity: Severity, text: str, placed: Sequence[NodePlacement], remedy: str) -> list[Finding]:
    if not placed or severity == "off":
        return []
    reasons = dict.fromkeys(place.why for place in placed if place.why)
    why = f": {next(iter(reasons))}" if len(reasons) == 1 else ""
    sentence = text.format(_count(placed), "runs" if len(placed) == 1 else "run") + why + "."
    nodes = tuple(place.node for place in placed)
    return [Finding(severity=severity, text=sentence, nodes=nodes, remedy=remedy, gate=gate)]
