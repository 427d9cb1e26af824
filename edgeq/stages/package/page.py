"""What the report's page shows, in words and numbers; the template only lays it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgeq.agreement import disagreeing
from edgeq.bundle import Manifest
from edgeq.report import (
    LIMIT_DB,
    Finding,
    GraphReport,
    Metric,
    NodePlacement,
    PlanRow,
    ProviderCheck,
    Report,
    TensorError,
)
from edgeq.stages.package.page_front import front_page
from edgeq.stages.package.page_nodes import nodes_page
from edgeq.stages.package.page_numbers import number
from edgeq.stages.package.page_trials import trials_page

__all__ = ["change", "report_page"]

_WORST = 24
_CEILING_DB = 80.0
_KINDS = {
    "integer": "integer kernels",
    "moves data": "moves integers",
    "float": "float",
    "fallback": "fell back to the CPU",
    "removed": "removed while loading",
}


def report_page(report: Report, manifest: Manifest) -> dict[str, Any]:
    """The template's variables."""
    kinds = {node.node: _kind(node, report.placement, manifest.provider.name) for node in report.placement}
    return {
        "r": report,
        "m": manifest,
        "verdict": _verdict(report),
        "summary": _summary(report),
        "cards": _cards(report),
        "metrics": [_metric_row(metric) for metric in report.metrics],
        "checks": [_check(check) for check in report.checks],
        "fallback": _fallback(report.fallback),
        "bars": _bars(report),
        "times": nodes_page(report.node_times, report.float_node_times),
        "front": front_page(report.front),
        "trials": trials_page(report.trials),
        "worst": _worst(report.blame),
        "depth": _depth_plot(report.blame),
        "kinds": kinds,
        "agreement": _agreement(report, manifest.provider.name),
        "differs": {place.node for place in disagreeing(report.placement)},
        "shares": _shares(list(kinds.values())),
        "skips": _skips(report.plan),
        "findings": _sorted(report.findings),
        "notes": tuple(dict.fromkeys((*report.notes, *manifest.notes))),
        "number": number,
        "size": _bytes,
        "decibel": _decibel,
    }


def change(metric: Metric) -> str:
    """Quantized minus float with its sign, or nothing where the float model is the reference."""
    if metric.float_value is None:
        return ""
    difference = metric.value - metric.float_value
    return f"{difference:+.2f}{' points' if metric.unit == '%' else ''}" if abs(difference) >= 0.005 else "none"


def _verdict(report: Report) -> dict[str, Any]:
    contract = report.contract
    clauses = [
        {
            "text": f"{clause.option} {number(clause.asked, clause.unit)}",
            "found": number(clause.measured, clause.unit),
            "met": clause.met,
        }
        for clause in (contract.clauses if contract else ())
    ]
    findings = (*report.findings, *(report.fallback.findings if report.fallback else ()))
    errors = sum(finding.severity == "error" for finding in findings)
    if contract and not contract.met:
        tone, text = "bad", "Misses its contract"
    elif errors:
        problems = "a problem" if errors == 1 else f"{errors} problems"
        tone, text = "warn", f"{'Meets its contract, but has' if contract else 'Has'} {problems} to look at"
    elif contract:
        tone, text = "good", "Meets its contract"
    else:
        tone, text = "plain", "Made without a contract"
    return {"tone": tone, "text": text, "clauses": clauses}


def _summary(report: Report) -> str:
    """One sentence for an app developer, from what was measured and nothing else."""
    parts = []
    if report.size:
        parts.append(f"is {number(report.size.ratio)} times smaller than the float model")
    if report.latency and report.latency.speedup:
        speed = report.latency.speedup
        how = f"{number(speed)} times as fast" if speed >= 1 else f"{number(1 / speed)} times slower"
        parts.append(f"runs {how} on the machine that measured")
    metric = report.metric(report.primary)
    if metric:
        if "agreement" in metric.name:
            parts.append(f"gives the float model's answer for {number(metric.value)} % of {metric.source}")
        elif metric.float_value is not None:
            parts.append(
                f"reaches {number(metric.value, metric.unit)} {metric.name} "
                f"where the float model has {number(metric.float_value, metric.unit)}"
            )
        else:
            parts.append(f"has a {metric.name} of {metric.value:.4f} to the float model")
    if not parts:
        return "Nothing was measured yet."
    joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"The package {joined}."


def _cards(report: Report) -> list[dict[str, str]]:
    metric, size, latency = report.metric(report.primary), report.size, report.latency
    float_p50 = latency.float_model.p50_ms if latency and latency.float_model else None
    memory, before = report.memory, report.float_memory
    return [
        {
            "title": "Accuracy lost",
            "value": "n/a" if report.drop is None else f"{max(report.drop, 0.0):.2f}",
            "unit": "" if report.drop is None else "points",
            "note": f"{metric.name}: {_metric_value(metric)}" if metric else "not measured",
        },
        {
            "title": "Size",
            "value": number(size.ratio) if size else "n/a",
            "unit": "x smaller" if size else "",
            "note": f"{_bytes(size.float_bytes)} to {_bytes(size.quantized_bytes)}" if size else "not measured",
        },
        {
            "title": "Speed",
            "value": number(latency.speedup) if latency and latency.speedup else "n/a",
            "unit": "x float" if latency and latency.speedup else "",
            "note": f"{number(float_p50, 'ms')} to {number(latency.quantized.p50_ms, 'ms')}, p50"
            if latency
            else "not measured",
        },
        {
            "title": "Peak memory",
            "value": number(memory.peak_mb - memory.baseline_mb) if memory else "n/a",
            "unit": "MB" if memory else "",
            "note": f"float model: {number(before.peak_mb - before.baseline_mb, 'MB')}"
            if memory and before
            else ("above the bare runtime" if memory else "not measured"),
        },
    ]


def _metric_value(metric: Metric) -> str:
    if metric.unit == "dB":
        return _decibel(metric.value)
    return f"{metric.value:.2f} %" if metric.unit == "%" else f"{metric.value:.4f}"


def _metric_row(metric: Metric) -> dict[str, str]:
    reference = "reference" if metric.float_value is None else f"{metric.float_value:.2f} {metric.unit}".strip()
    return {
        "name": metric.name,
        "value": _metric_value(metric),
        "reference": reference,
        "change": change(metric),
        "source": metric.source,
    }


def _check(check: ProviderCheck) -> dict[str, Any]:
    """A line of the table of places; what was not run has no figures."""
    return {
        "place": check.place or check.provider,
        "status": check.status,
        "figures": [
            f"{metric.name.removesuffix(f' on {check.place}')}: {_metric_value(metric)}" for metric in check.metrics
        ],
        "text": check.text,
        "version": check.version,
        "remedy": check.remedy,
    }


def _fallback(graph: GraphReport | None) -> dict[str, Any] | None:
    """The second graph's figures."""
    if graph is None:
        return None
    return {
        "graph": graph,
        "metrics": [_metric_row(metric) for metric in graph.metrics],
        "checks": [_check(check) for check in graph.checks],
        "findings": _sorted(graph.findings),
        "kinds": ", ".join(f"{count} {kind}" for kind, count in graph.kinds.items()),
    }


def _sorted(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda f: ("error", "warning", "info").index(f.severity))


def _bars(report: Report) -> list[dict[str, Any]]:
    """Pairs of bars, quantized against float; a pair shares one scale."""
    charts = []
    latency, size = report.latency, report.size
    if latency:
        ours, theirs = latency.quantized, latency.float_model
        rows = [("quantized", ours.p50_ms, f"{number(ours.p50_ms, 'ms')} (p90 {number(ours.p90_ms)})")]
        if theirs:
            rows.append(("float", theirs.p50_ms, f"{number(theirs.p50_ms, 'ms')} (p90 {number(theirs.p90_ms)})"))
        threads = "1 thread" if ours.threads == 1 else f"{ours.threads} threads"
        note = f"median of {ours.runs} runs, {threads}"
        charts.append(_chart("Latency", note, rows))
    if size:
        rows = [
            ("quantized", float(size.quantized_bytes), _bytes(size.quantized_bytes)),
            ("float", float(size.float_bytes), _bytes(size.float_bytes)),
        ]
        charts.append(_chart("Model file", "bytes on disk", rows))
    memories = (("quantized", report.memory), ("float", report.float_memory))
    above = [(name, m.peak_mb - m.baseline_mb) for name, m in memories if m]
    if above:
        rows = [(name, value, number(value, "MB")) for name, value in above]
        charts.append(_chart("Peak memory", "load and one run, above the bare runtime", rows))
    return charts


def _chart(title: str, note: str, rows: Sequence[tuple[str, float, str]]) -> dict[str, Any]:
    longest = max(value for _, value, _ in rows) or 1.0
    return {
        "title": title,
        "note": note,
        "rows": [
            {"name": name, "text": text, "percent": round(100 * max(value, 0) / longest, 2)}
            for name, value, text in rows
        ],
    }


def _worst(blame: Sequence[TensorError]) -> list[dict[str, Any]]:
    """The worst tensors, their error as amplitude in percent of the signal; the bar's solid part is the node's own."""
    shown = [error for error in blame if error.sqnr_db < _CEILING_DB][:_WORST]
    errors = [100 * 10 ** (-error.sqnr_db / 20) for error in shown]
    longest = min(max(errors, default=0.0), 200.0)
    rows = []
    for error, amplitude in zip(shown, errors, strict=True):
        length = 100 * min(amplitude / longest, 1.0)
        rows.append(
            {
                "error": error,
                "amplitude": "over 999 %" if amplitude > 999 else f"{number(amplitude)} %",
                "own": round(length * error.own_share, 2),
                "inherited": round(length * (1 - error.own_share), 2),
            }
        )
    return rows


def _depth_plot(blame: Sequence[TensorError]) -> dict[str, Any] | None:
    """Points of the SQNR over the depth of the network, in an area of 1000 by 220."""
    errors = sorted(blame, key=lambda error: error.depth)
    if len(errors) < 3:
        return None
    values = [min(error.sqnr_db, _CEILING_DB) for error in errors]
    low = max(-20.0, math.floor((min(values) - 4) / 10) * 10)
    high = max(low + 20.0, math.ceil(max(values) / 10) * 10)
    step = 10 if high - low <= 60 else 20

    def y(value: float) -> float:
        return round(220 * (high - max(value, low)) / (high - low), 1)

    last = max(errors[-1].depth, 1)
    points = [
        {"x": round(1000 * error.depth / last, 1), "y": y(value), "error": error}
        for error, value in zip(errors, values, strict=True)
    ]
    lines = [{"y": y(db), "text": f"{db:.0f}"} for db in range(int(low), int(high) + 1, step)]
    worst = points[min(range(len(errors)), key=lambda index: errors[index].sqnr_db)]
    return {"points": points, "lines": lines, "path": " ".join(f"{p['x']},{p['y']}" for p in points), "worst": worst}


def _kind(node: NodePlacement, placement: Sequence[NodePlacement], provider: str) -> str:
    by_name = {place.node: place for place in placement}
    seen: set[str] = set()
    while node.kind == "fused" and node.fused_into in by_name and node.node not in seen:
        seen.add(node.node)
        node = by_name[str(node.fused_into)]
    if node.kind == "fused":
        return "removed"
    return "fallback" if node.provider != provider else node.kind


def _agreement(report: Report, provider: str) -> str:
    """Who told where the nodes run, and how many run as predicted."""
    if report.agreement is None:
        told = any(place.runs_as != "not run here" for place in report.placement)
        return f"as {provider} itself reported" if told else f"as the profile predicts; {provider} did not run here"
    return f"as {provider} itself reported, {100 * report.agreement:.1f} % of them as the profile predicts"


def _shares(kinds: Sequence[str]) -> list[dict[str, Any]]:
    counts = [(kind, text, kinds.count(kind)) for kind, text in _KINDS.items()]
    return [
        {"kind": kind.replace(" ", "-"), "text": text, "count": count, "percent": round(100 * count / len(kinds), 2)}
        for kind, text, count in counts
        if count
    ]


def _skips(plan: Sequence[PlanRow]) -> list[tuple[str, int]]:
    reasons = [row.skip_reason for row in plan if row.skip_reason]
    return sorted(((reason, reasons.count(reason)) for reason in set(reasons)), key=lambda item: (-item[1], item[0]))


def _bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return number(count / 1e6, "MB") if count >= 1_000_000 else number(count / 1e3, "kB")


def _decibel(value: float) -> str:
    return "identical" if value >= LIMIT_DB else "no signal" if value <= -LIMIT_DB else f"{value:.1f} dB"
